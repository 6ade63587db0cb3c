// The tier that computes, for one pool: its shared slots, and which of their rows may be evicted.
//
// A row is pinned by every planned batch that holds it. When its last pin drops it is *listed*: the
// policy may choose it as a victim. Rows in overflow slots are never listed; they leave when their
// last pin drops. Rows of whole tables are not here (WholeTables).
//
// Part of a planner, which holds its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/check.h"
#include "residency/batch.h"
#include "residency/lower_tier.h"
#include "residency/planner.h"
#include "residency/policy.h"
#include "residency/slots.h"

namespace te {

class UpperTier {
 public:
  UpperTier(RowTable* rows, const PlannerOptions& options);

  // The tier below that takes this one's victims, or nullptr.
  LowerTier* lower() const { return lower_.get(); }

  // Whether the row is in this tier.
  bool holds(const Row& row) const { return static_cast<uint32_t>(row.slot) < first_lower_; }
  bool is_transient(const Row& row) const { return holds(row) && row.slot >= cached_.end(); }
  // Whether the row, unpinned, keeps its slot for good: it was changed and no tier lies below.
  bool stays(bool dirty) const { return dirty && !backed_ && lower_ == nullptr; }

  // Here and below, `row` is the row that `r` names. A batch takes it. REQUIRES: holds(row).
  void pin(RowHandle r, Row& row) {
    TE_CHECK(holds(row), "a row to pin is here");
    // Counted modulo the field: one more than kMaxPins while plans are about to drop theirs.
    row.pins = (row.pins + 1u) & kMaxPins;
    if (!row.listed) return;
    policy_->remove(r);
    row.listed = 0;
    --num_listed_;
  }
  // A batch drops its pin; `next_use` is a plan's number or kNever. REQUIRES: it is pinned.
  void unpin(RowHandle r, Row& row, int64_t next_use) {
    TE_CHECK(holds(row) && !row.listed, "a row to unpin is pinned");
    row.pins = (row.pins - 1u) & kMaxPins;
    if (row.pins != 0) return;
    if (row.slot >= cached_.end()) {
      leaving_.push_back({r, next_use});
    } else if (!stays(row.dirty)) {
      row.listed = 1;
      ++num_listed_;
      policy_->insert(r, next_use);
    }
  }

  // The next use of a listed row, in either tier, became known, or (kNever) was taken back.
  void reschedule(RowHandle r, const Row& row, int64_t next_use) {
    TE_CHECK(row.listed, "only listed rows wait for a use");
    holds(row) ? policy_->reschedule(r, next_use) : lower_->reschedule(r, next_use);
  }
  // For the policies of both tiers; see EvictionPolicy.
  void postpone();
  void advance(int64_t plan);
  // A planned batch uses the row. REQUIRES: it is pinned.
  void use(RowHandle r) {
    TE_CHECK(holds(rows_[r]) && !rows_[r].listed, "a used row is pinned");
    policy_->use(r);
  }

  // Evicts the rows whose last pin dropped while they were in overflow slots. As in `place`, the
  // victims go into the plan, and a row without a use from `window_base` on is forgotten.
  void evict_leaving(uint32_t window_base, StepPlan* plan);
  // Gives the row a slot, evicting another one where none is free, and pins it. Returns whether it
  // is an overflow slot. REQUIRES: the row has none; there is room.
  bool place(RowHandle r, uint32_t window_base, StepPlan* plan);
  // What came down during a plan finds its slots in the lower tier, if there is one.
  void finish_plan(uint32_t window_base, StepPlan* plan);

  int64_t num_free() const { return cached_.num_free(); }
  int64_t num_free_overflow() const { return overflow_.num_free(); }
  int64_t num_transient() const { return overflow_.num_taken(); }
  int64_t num_resident() const { return cached_.num_taken() + overflow_.num_taken(); }
  int64_t num_listed() const { return num_listed_; }

  // Per table of the pool, whole ones included.
  std::vector<TableCounts>& counts() { return counts_; }
  const std::vector<TableCounts>& counts() const { return counts_; }
  size_t bytes() const;

 private:
  struct Leaving {
    RowHandle row;
    int64_t next_use;
  };

  void evict(RowHandle r, int64_t next_use, uint32_t window_base, StepPlan* plan);

  RowTable& rows_;
  const bool backed_;
  const uint32_t first_lower_;  // slots from here on are the lower tier's
  Slots cached_;
  Slots overflow_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::unique_ptr<LowerTier> lower_;
  int64_t num_listed_ = 0;
  std::vector<Leaving> leaving_;  // while a plan is made
  std::vector<TableCounts> counts_;
};

}  // namespace te
