#include "store/reader_pool.h"

#include <algorithm>

#include "core/check.h"

namespace te {

void ReaderPool::Job::run_tasks() {
  for (size_t i = next.fetch_add(1); i < num_tasks; i = next.fetch_add(1)) (*work)(i);
}

ReaderPool::ReaderPool(size_t num_threads) {
  threads_.reserve(num_threads);
  for (size_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { thread_main(); });
}

ReaderPool::~ReaderPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    TE_CHECK(jobs_.empty(), "no parallel_for is running");
    stopping_ = true;
  }
  work_ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReaderPool::parallel_for(size_t num_tasks, const std::function<void(size_t)>& work) {
  Job job;
  job.work = &work;
  job.num_tasks = num_tasks;
  job.helpers_running = 0;
  job.helpers_wanted = num_tasks > 1 ? std::min(threads_.size(), num_tasks - 1) : 0;
  const size_t helpers_wanted = job.helpers_wanted;
  if (helpers_wanted > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
  }
  for (size_t i = 0; i < helpers_wanted; ++i) work_ready_.notify_one();
  job.run_tasks();
  if (helpers_wanted == 0) return;

  std::unique_lock<std::mutex> lock(mutex_);
  // Helpers that have not arrived by now have nothing left to do.
  jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
  helper_done_.wait(lock, [&job] { return job.helpers_running == 0; });
}

void ReaderPool::thread_main() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_ready_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    Job* job = jobs_.front();
    if (--job->helpers_wanted == 0) jobs_.pop_front();
    ++job->helpers_running;
    lock.unlock();
    job->run_tasks();
    lock.lock();
    if (--job->helpers_running == 0) helper_done_.notify_all();
  }
}

}  // namespace te
