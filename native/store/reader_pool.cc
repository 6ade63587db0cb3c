#include "store/reader_pool.h"

#include <pthread.h>

#include <algorithm>
#include <exception>

#include "core/check.h"

namespace te {
namespace {

// Each has up to 32 reads of one file in flight (see file_reads.h), 8 on average where half of the
// rows have been rewritten since the last merge. Of several sorted runs 12 threads read 12 to 20 %
// more rows than 6; from merged files 4 saturate a disk. The callers' own threads come on top.
constexpr size_t kFewestThreads = 10;
constexpr size_t kMostThreads = 32;

// Never destroyed: its threads may wait for work until the process has ended.
std::atomic<ReaderPool*> process_pool{nullptr};
[[maybe_unused]] const int registered =
    ::pthread_atfork(nullptr, nullptr, [] { process_pool.store(nullptr); });

}  // namespace

size_t ReaderPool::Job::num_left() const {
  const size_t begun = next.load();
  return begun < num_tasks ? num_tasks - begun : 0;
}

bool ReaderPool::Job::wants_help() const { return num_helpers < max_helpers && num_left() > 0; }

ReaderPool::ReaderPool(size_t max_threads) : max_threads_(max_threads) {}

ReaderPool::~ReaderPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    TE_CHECK(jobs_.empty(), "no parallel_for is running");
    stopping_ = true;
  }
  work_ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

ReaderPool& ReaderPool::of_process() {
  ReaderPool* pool = process_pool.load();
  if (pool == nullptr) {
    const size_t cores = std::thread::hardware_concurrency();
    auto* const made = new ReaderPool(std::clamp(cores, kFewestThreads, kMostThreads));
    if (process_pool.compare_exchange_strong(pool, made)) {
      pool = made;
    } else {
      delete made;  // another thread was faster
    }
  }
  return *pool;
}

void ReaderPool::parallel_for(size_t num_tasks, size_t max_helpers,
                              const std::function<void(size_t)>& work) {
  Job job{work, num_tasks, num_tasks > 1 ? std::min(max_helpers, num_tasks - 1) : 0};
  if (job.max_helpers > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
    start_threads();
  }
  for (size_t i = 0; i < job.max_helpers; ++i) work_ready_.notify_one();
  for (size_t i = job.next++; i < num_tasks; i = job.next++) work(i);
  if (job.max_helpers == 0) return;

  std::unique_lock<std::mutex> lock(mutex_);
  // Helpers that have not arrived by now have nothing left to do.
  jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
  helper_done_.wait(lock, [&job] { return job.num_helpers == 0; });
}

ReaderPool::Job* ReaderPool::job_to_help() const {
  Job* best = nullptr;
  for (Job* job : jobs_) {
    if (job->wants_help() && (best == nullptr || job->num_left() < best->num_left())) best = job;
  }
  return best;
}

void ReaderPool::start_threads() {
  size_t wanted = 0;
  for (const Job* job : jobs_) wanted += std::min(job->max_helpers, job->num_left());
  while (threads_.size() < std::min(wanted, max_threads_)) {
    try {
      threads_.emplace_back([this] { thread_main(); });
      ::pthread_setname_np(threads_.back().native_handle(), "te-reader");
    } catch (const std::exception&) {
      return;  // the process may have no more; those that there are, and the callers, read
    }
  }
}

void ReaderPool::thread_main() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    Job* job = nullptr;
    work_ready_.wait(lock, [&] { return stopping_ || (job = job_to_help()) != nullptr; });
    if (stopping_) return;
    ++job->num_helpers;
    lock.unlock();
    // One task, then whoever needs help most by then.
    const size_t i = job->next++;
    if (i < job->num_tasks) job->work(i);
    lock.lock();
    if (--job->num_helpers == 0) helper_done_.notify_all();
  }
}

}  // namespace te
