// Threads that keep many blocking disk reads in flight at once, for all stores of the process.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace te {

class ReaderPool {
 public:
  // Starts no thread yet: up to `max_threads` when there is work for them. 0 is allowed: the
  // callers then do all the work, as they do where the process cannot have another thread.
  explicit ReaderPool(size_t max_threads);

  // REQUIRES: no parallel_for is running.
  ~ReaderPool();

  ReaderPool(const ReaderPool&) = delete;
  ReaderPool& operator=(const ReaderPool&) = delete;

  // The pool that all stores share. It lives as long as the process; a forked child, which has none
  // of its threads, gets one of its own.
  static ReaderPool& of_process();

  // Calls work(i) once for every i in [0, num_tasks), on the calling thread and on up to
  // `max_helpers` threads of the pool, and returns when all calls have returned. Safe to call from
  // several threads: the pool's threads help first where the fewest tasks are left, so that a small
  // call does not wait for a large one.
  // REQUIRES: work does not throw.
  void parallel_for(size_t num_tasks, size_t max_helpers, const std::function<void(size_t)>& work);

  size_t max_threads() const { return max_threads_; }

 private:
  struct Job {
    const std::function<void(size_t)>& work;
    const size_t num_tasks;
    const size_t max_helpers;
    std::atomic<size_t> next{0};  // grows past num_tasks
    size_t num_helpers = 0;       // guarded by mutex_

    size_t num_left() const;
    bool wants_help() const;  // REQUIRES: mutex_ is held
  };

  // Both REQUIRE: mutex_ is held.
  Job* job_to_help() const;
  void start_threads();

  void thread_main();

  const size_t max_threads_;

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable helper_done_;
  // Guarded by mutex_. Jobs live on their callers' stacks; the oldest is first.
  std::vector<Job*> jobs_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
};

}  // namespace te
