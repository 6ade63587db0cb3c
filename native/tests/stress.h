// What the parts of the stress program share: seeds, rounds, threads and checks.
//
// A part drives one native piece from several threads, as the pipeline does, and compares with a
// simple truth. It works in rounds until its time is over; the inputs of a round follow from its
// seed alone, the interleaving does not.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace te::stress {

// Prints the message with part and seed, and ends the program with status 1.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

#define TE_EXPECT(condition, ...)        \
  do {                                   \
    if (!(condition)) fail(__VA_ARGS__); \
  } while (false)

struct Run {
  uint64_t seed;
  double seconds;
};

// `for (Rounds rounds(run); rounds.next();)`: at least one, and no new one once time is over.
class Rounds {
 public:
  explicit Rounds(const Run& run);
  bool next();
  uint64_t seed() const { return first_seed_ + num_begun_ - 1; }

 private:
  const uint64_t first_seed_;
  const std::chrono::steady_clock::time_point end_;
  uint64_t num_begun_ = 0;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  // In [0, n), small ones often.
  int64_t skewed_below(int64_t n) {
    const double u = unit();
    return static_cast<int64_t>(static_cast<double>(n) * u * u * u);
  }
  template <typename T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))];
  }

 private:
  std::mt19937_64 engine_;
};

// Threads that are joined when it goes out of scope.
class Threads {
 public:
  Threads() = default;
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() { join(); }
  template <typename Fn>
  void start(Fn fn) {
    threads_.emplace_back(std::move(fn));
  }
  void join() {
    for (std::thread& t : threads_) t.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

// Something that happens once and can be waited for.
class Event {
 public:
  void set() {
    std::lock_guard<std::mutex> lock(mutex_);
    happened_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return happened_; });
  }
  bool has_happened() {
    std::lock_guard<std::mutex> lock(mutex_);
    return happened_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool happened_ = false;  // guarded by mutex_
};

// Jobs in the order of `post`, on `num_threads` threads; all have run when it goes out of scope.
class Executor {
 public:
  explicit Executor(int64_t num_threads) {
    for (int64_t i = 0; i < num_threads; ++i) threads_.start([this] { work(); });
  }
  ~Executor() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    threads_.join();
  }
  void post(std::function<void()> job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    wake_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return closing_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;  // guarded by mutex_
  bool closing_ = false;                    // guarded by mutex_
  Threads threads_;
};

void stress_write_buffer(const Run& run);
void stress_thread_pool(const Run& run);
void stress_reader_pool(const Run& run);
void stress_hash(const Run& run);
void stress_planner(const Run& run);
void stress_memory(const Run& run);
void stress_pipeline(const Run& run);
void stress_store(const Run& run);

}  // namespace te::stress
