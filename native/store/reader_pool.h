// Persistent threads that keep many blocking disk reads in flight at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace te {

class ReaderPool {
 public:
  // Starts `num_threads` threads (0 is allowed: the callers then do all the work).
  explicit ReaderPool(size_t num_threads);

  // REQUIRES: no parallel_for is running.
  ~ReaderPool();

  ReaderPool(const ReaderPool&) = delete;
  ReaderPool& operator=(const ReaderPool&) = delete;

  // Calls work(i) once for every i in [0, num_tasks), on the calling thread and on idle pool
  // threads, and returns when all calls have returned. Safe to call from several threads.
  // REQUIRES: work does not throw.
  void parallel_for(size_t num_tasks, const std::function<void(size_t)>& work);

  size_t num_threads() const { return threads_.size(); }

 private:
  struct Job {
    const std::function<void(size_t)>* work;
    size_t num_tasks;
    std::atomic<size_t> next{0};
    size_t helpers_wanted;   // guarded by mutex_
    size_t helpers_running;  // guarded by mutex_

    void run_tasks();
  };

  void thread_main();

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable helper_done_;
  // Guarded by mutex_. Jobs live on their callers' stacks and are here only while they want help.
  std::deque<Job*> jobs_;
  bool stopping_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace te
