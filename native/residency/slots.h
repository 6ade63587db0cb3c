// A range of slots, and which of them are free. Not thread-safe: the planner holds its lock.
#pragma once

#include <cstdint>
#include <vector>

#include "core/check.h"

namespace te {

// The slot given back last goes out first. Slots that were never used follow in ascending order, so
// that a tier that fills up touches its memory from the front.
class Slots {
 public:
  Slots(int64_t first, int64_t count) : first_(first), end_(first + count), fresh_(first) {}

  int64_t end() const { return end_; }
  int64_t num_free() const { return end_ - fresh_ + static_cast<int64_t>(given_back_.size()); }
  int64_t num_taken() const { return end_ - first_ - num_free(); }

  // REQUIRES: num_free() > 0.
  int32_t take() {
    TE_CHECK(num_free() > 0, "a slot is free");
    if (given_back_.empty()) return static_cast<int32_t>(fresh_++);
    const int32_t slot = given_back_.back();
    given_back_.pop_back();
    return slot;
  }

  // REQUIRES: `slot` was taken from this range.
  void give_back(int32_t slot) {
    TE_CHECK(slot >= first_ && slot < fresh_ && num_taken() > 0, "the slot was taken from here");
    given_back_.push_back(slot);
  }

  size_t bytes() const { return given_back_.capacity() * sizeof(int32_t); }

 private:
  const int64_t first_;
  const int64_t end_;
  int64_t fresh_;                    // the next one that was never used
  std::vector<int32_t> given_back_;  // in the order of give_back
};

}  // namespace te
