// Memory for the blocks of a loop over core/thread_pool.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "core/check.h"
#include "core/plain_vector.h"

namespace te {

// Floats for the blocks of a parallel loop. The memory is there before the first block runs: a loop
// that changes rows cannot end halfway for want of it.
class Scratch {
 public:
  Scratch(int64_t num_floats, int num_threads) {
    memory_.resize(static_cast<size_t>(num_floats * num_threads));
    for (int t = 0; t < num_threads; ++t) free_.push_back(memory_.data() + t * num_floats);
  }

  // One block's part of them. REQUIRES: no more blocks run at once than there are threads.
  class Part {
   public:
    explicit Part(Scratch* scratch) : scratch_(*scratch) {
      std::lock_guard<std::mutex> lock(scratch_.mutex_);
      TE_CHECK(!scratch_.free_.empty(), "each running block has scratch");
      floats_ = scratch_.free_.back();
      scratch_.free_.pop_back();
    }
    ~Part() {
      std::lock_guard<std::mutex> lock(scratch_.mutex_);
      scratch_.free_.push_back(floats_);  // into room that is there
    }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;
    float* data() const { return floats_; }

   private:
    Scratch& scratch_;
    float* floats_;
  };

 private:
  PlainVector<float> memory_;
  std::mutex mutex_;
  std::vector<float*> free_;  // guarded by mutex_
};

}  // namespace te
