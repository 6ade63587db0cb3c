// Two queues: new rows wait in a small one and reach the main one only if they are used again.
//
// Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
// 2023, with its parameters: a tenth of the slots for the small queue, a ghost queue as long as the
// main one, two uses in the small queue to move on, counts up to three. What differs: a use pins
// the row and so takes it out of its queue; when its pins drop it goes to that queue's end. And the
// ghosts lie in sets of eight by hash, each a queue of its own.
//
// State: 1 byte per slot, and 1.8 for nine tenths of a remembered row.
#include <algorithm>

#include "core/check.h"
#include "core/virtual_array.h"
#include "residency/policy.h"

namespace te {
namespace {

constexpr uint8_t kUses = 3;  // mask: uses since the row came, or came to the main queue
constexpr uint8_t kMain = 4;  // in the main queue
constexpr uint8_t kKnown = 8;
constexpr uint8_t kUsesToStay = 2;

// Fingerprints of rows that left the small queue.
class Ghosts {
 public:
  explicit Ghosts(int64_t num_slots)
      : num_sets_(static_cast<size_t>((num_slots * 9 / 10 + 7) / 8)), entries_(num_sets_ * kWays) {}

  void put(uint32_t hash) {
    if (num_sets_ == 0) return;
    empty_ = false;
    uint16_t* set = set_of(hash);
    std::copy_backward(set, set + kWays - 1, set + kWays);
    set[0] = fingerprint(hash);
  }

  // Whether the row was remembered; it is forgotten.
  bool take(uint32_t hash) {
    if (empty_) return false;
    uint16_t* set = set_of(hash);
    uint16_t* found = std::find(set, set + kWays, fingerprint(hash));
    if (found == set + kWays) return false;
    std::copy(found + 1, set + kWays, found);
    set[kWays - 1] = 0;
    return true;
  }

  size_t bytes() const { return empty_ ? 0 : entries_.bytes(); }

 private:
  static constexpr size_t kWays = 8;

  static uint16_t fingerprint(uint32_t hash) {
    return static_cast<uint16_t>(std::max(1u, hash & 0xFFFFu));  // 0: no row
  }
  uint16_t* set_of(uint32_t hash) {
    return entries_.data() + ((uint64_t{hash} * num_sets_) >> 32) * kWays;
  }

  size_t num_sets_;
  VirtualArray<uint16_t> entries_;  // newest first in every set
  bool empty_ = true;               // its pages have not been touched
};

class S3Fifo final : public EvictionPolicy {
 public:
  explicit S3Fifo(const PolicySpace& space)
      : space_(space),
        states_(space.num_indices()),
        ghosts_(space.num_slots),
        small_(space.rows),
        main_(space.rows) {}

  void use(RowHandle row) override {
    const size_t i = space_.index(row);
    num_states_ = std::max(num_states_, i + 1);
    uint8_t& state = states_[i];
    if (state == 0) {
      state = ghosts_.take(hash(row)) ? kKnown | kMain : kKnown;
    } else if ((state & kUses) < kUses) {
      ++state;
    }
  }

  void insert(RowHandle row, int64_t) override {
    TE_CHECK(states_[space_.index(row)] != 0, "the row has been used in its slot");
    push(row, states_[space_.index(row)]);
  }

  void remove(RowHandle row) override {
    --(states_[space_.index(row)] & kMain ? num_main_ : num_small_);
    RowList::unlink(space_.rows, row);
  }

  void reschedule(RowHandle, int64_t) override {}

  RowHandle evict(int64_t* next_use) override {
    *next_use = kNever;
    while (num_small_ + num_main_ > 0) {
      const bool small = num_main_ == 0 || num_small_ > space_.num_slots / 10;
      const RowHandle row = (small ? small_ : main_).front();
      remove(row);
      uint8_t& state = states_[space_.index(row)];
      if ((state & kUses) < (small ? kUsesToStay : 1)) return row;
      state = small ? kKnown | kMain : static_cast<uint8_t>(state - 1);
      push(row, state);
    }
    return kNoRow;
  }

  void leave(RowHandle row) override {
    uint8_t& state = states_[space_.index(row)];
    if (!(state & kMain)) ghosts_.put(hash(row));
    state = 0;
  }

  void advance(int64_t) override {}
  size_t bytes() const override { return num_states_ + ghosts_.bytes(); }

 private:
  uint32_t hash(RowHandle r) const {
    const Row& row = (*space_.rows)[r];
    return RowTable::fixed_hash(row.table, row.id());
  }

  void push(RowHandle row, uint8_t state) {
    ++(state & kMain ? num_main_ : num_small_);
    (state & kMain ? main_ : small_).push_back(row);
  }

  const PolicySpace space_;
  VirtualArray<uint8_t> states_;  // by slot; 0: no row that was used
  size_t num_states_ = 0;         // all after these are 0
  Ghosts ghosts_;
  RowList small_;  // oldest first
  RowList main_;
  int64_t num_small_ = 0;
  int64_t num_main_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_s3fifo(const PolicySpace& space) {
  return std::make_unique<S3Fifo>(space);
}

}  // namespace te
