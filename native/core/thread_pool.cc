#include "core/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/float_state.h"

namespace te {
namespace {

constexpr int kMaxWorkers = 256;
constexpr int kSpins = 1000;  // some 20 us: less than it takes to sleep and be woken

// One loop. It lives until the last worker that saw it has dropped it.
struct Loop {
  Loop(int64_t n, const std::function<void(int64_t)>* f) : num_blocks(n), fn(f) {}

  const int64_t num_blocks;
  const std::function<void(int64_t)>* const fn;  // valid while blocks remain unfinished
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> finished{0};
  std::mutex mutex;
  std::condition_variable done;
  std::exception_ptr error;  // guarded by mutex

  void run() {
    const StandardFloats floats;
    for (;;) {
      const int64_t i = next.fetch_add(1);
      if (i >= num_blocks) return;
      try {
        (*fn)(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
      }
      if (finished.fetch_add(1) + 1 == num_blocks) {
        std::lock_guard<std::mutex> lock(mutex);
        done.notify_all();
      }
    }
  }
};

class Pool {
 public:
  // Where the process can have no more threads or memory, fewer help, or none: the caller works.
  void offer(const std::shared_ptr<Loop>& loop, int helpers) noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
      while (num_workers_ < std::min(helpers, kMaxWorkers)) {
        std::thread([this] { work(); }).detach();
        ++num_workers_;
      }
    } catch (const std::exception&) {
    }
    if (num_workers_ == 0) return;
    try {
      for (int i = 0; i < helpers; ++i) queue_.push_back(loop);
    } catch (const std::exception&) {
    }
    if (helpers == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
  }

 private:
  void work() {
    for (;;) {
      std::shared_ptr<Loop> loop;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        loop = std::move(queue_.front());
        queue_.pop_front();
      }
      loop->run();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Loop>> queue_;  // guarded by mutex_
  int num_workers_ = 0;                      // guarded by mutex_
};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Never destroyed: workers may still wait on it while the process exits. A child after fork has
// no workers, so it gets a pool of its own; what the parent's other threads held locked stays so.
std::atomic<Pool*> of_process{nullptr};
[[maybe_unused]] const int registered =
    ::pthread_atfork(nullptr, nullptr, [] { of_process.store(nullptr); });

Pool& pool() {
  Pool* found = of_process.load();
  if (found == nullptr) {
    auto* const made = new Pool;
    if (of_process.compare_exchange_strong(found, made)) {
      found = made;
    } else {
      delete made;  // another thread was faster
    }
  }
  return *found;
}

}  // namespace

void parallel_for(int64_t num_blocks, int num_threads, const std::function<void(int64_t)>& fn) {
  TE_CHECK(num_threads >= 1, "the caller's own thread takes part");
  if (num_blocks <= 0) return;
  const int helpers = static_cast<int>(std::min<int64_t>(num_threads, num_blocks)) - 1;
  if (helpers <= 0) {
    const StandardFloats floats;
    for (int64_t i = 0; i < num_blocks; ++i) fn(i);
    return;
  }
  auto loop = std::make_shared<Loop>(num_blocks, &fn);
  pool().offer(loop, helpers);
  loop->run();
  // The others are in their last blocks.
  for (int i = 0; i < kSpins && loop->finished.load() != num_blocks; ++i) relax();
  std::unique_lock<std::mutex> lock(loop->mutex);
  loop->done.wait(lock, [&] { return loop->finished.load() == num_blocks; });
  // Moved out: a worker that drops the loop later must not be the one to destroy it.
  if (loop->error) std::rethrow_exception(std::move(loop->error));
}

}  // namespace te
