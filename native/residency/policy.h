// Which evictable row goes first. One small file per policy; the planner drives it.
//
// A row is *listed* (`insert`) when its last pin drops and unlisted (`remove`) when a batch pins it
// again. Between the two `evict` may choose it. The policy also learns of every use of a resident
// row, and of every row that loses its slot, whoever chose it. Decisions depend on the calls alone,
// never on time. Not thread-safe: the planner holds its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "residency/row_table.h"

namespace te {

constexpr int64_t kNever = INT64_MAX;  // no use inside the window

// What a policy may keep state about. Slots are numbered from `first_slot`; the transient ones
// follow.
struct PolicySpace {
  RowTable* rows;
  int64_t first_slot;
  int64_t num_slots;
  int64_t num_overflow;

  size_t index(RowHandle row) const { return static_cast<size_t>((*rows)[row].slot - first_slot); }
  size_t num_indices() const { return static_cast<size_t>(num_slots + num_overflow); }
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // A batch that is being planned uses `row`, however often. It has its slot, maybe since just now.
  // REQUIRES: row is not listed. Once per row and batch, in the order of first occurrence, after
  // the batch's evictions.
  virtual void use(RowHandle row) = 0;

  // `row` became evictable; the plan number `next_use` will need it, or kNever.
  // REQUIRES: row is not listed and has been used since it got its slot.
  virtual void insert(RowHandle row, int64_t next_use) = 0;

  // `row` was pinned. REQUIRES: row is listed.
  virtual void remove(RowHandle row) = 0;

  // A listed row's next use became known, or (kNever) was taken back.
  virtual void reschedule(RowHandle row, int64_t next_use) = 0;

  // Chooses a row, unlists and returns it; kNoRow when none is listed. `next_use`: as it was listed
  // under, where the policy keeps it.
  virtual RowHandle evict(int64_t* next_use) = 0;

  // `row` is about to lose its slot. REQUIRES: row is not listed and still has its slot.
  virtual void leave(RowHandle row) = 0;

  // Plan `plan` is being made: no listed row has its next use at or before it any more.
  virtual void advance(int64_t plan) = 0;

  // A batch from outside the window gets the next plan: all plans that rows are listed under get a
  // number higher by one. Comes before the `advance` of that plan.
  virtual void postpone() {}

  // Memory taken in addition to the rows.
  virtual size_t bytes() const = 0;
};

std::unique_ptr<EvictionPolicy> make_lru(const PolicySpace& space);
std::unique_ptr<EvictionPolicy> make_lfu(const PolicySpace& space);
std::unique_ptr<EvictionPolicy> make_s3fifo(const PolicySpace& space);

// Rows used inside the window stay, farthest next use out first; the rest follow `base`.
std::unique_ptr<EvictionPolicy> make_lookahead(const PolicySpace& space,
                                               std::unique_ptr<EvictionPolicy> base);

// By name: "lru", "lfu", "s3fifo", "lookahead:" with one of them, "lookahead" with the default one.
std::unique_ptr<EvictionPolicy> make_policy(const std::string& name, const PolicySpace& space);

}  // namespace te
