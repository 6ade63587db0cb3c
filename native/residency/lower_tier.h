// The tier below the one that computes, for one pool: it holds what lost its slot above, until the
// row is used again or there is no room. A row is in one tier at a time, so the capacities add up.
//
// What the tier above asks for and what falls out of it are this tier's stream. Its slots follow
// the upper tier's; plans number them from 0. Part of a planner, which holds its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/check.h"
#include "residency/planner.h"
#include "residency/policy.h"
#include "residency/row_table.h"
#include "residency/slots.h"
#include "residency/step_plan.h"

namespace te {

class LowerTier {
 public:
  // `backed`: a tier below takes what loses its slot here.
  LowerTier(RowTable* rows, const std::string& policy, int64_t first_slot, int64_t num_slots,
            bool backed, size_t num_tables);

  bool holds(const Row& row) const { return row.slot >= first_slot_; }

  // Rows that could come down now without a loss. REQUIRES: nothing descends.
  int64_t room() const;

  // The row goes up; returns its slot. REQUIRES: holds(row).
  int32_t give(RowHandle r);

  // The row has lost its slot above; `next_use` is a plan's number or kNever.
  void descend(RowHandle r, int64_t next_use) { descending_.push_back({r, next_use}); }

  // Finds slots for what descended since the last call, in that order, and names them in the plan,
  // with the rows that fall out to make room. Rows without a slot and without a use from
  // `window_base` on are forgotten.
  void place_descended(uint32_t window_base, StepPlan* plan);

  // `num_asked` rows of `table` were asked for by a plan, and `num_missed` of them were not here.
  void note(size_t table, int64_t num_asked, int64_t num_missed);

  void postpone() { policy_->postpone(); }
  void advance(int64_t plan) { policy_->advance(plan); }
  void reschedule(RowHandle r, int64_t next_use) { policy_->reschedule(r, next_use); }

  // The row's record has been written back. REQUIRES: holds(*row).
  void mark_clean(Row* row);

  int64_t num_resident() const { return slots_.num_taken(); }
  const std::vector<TableCounts>& counts() const { return counts_; }
  size_t bytes() const { return policy_->bytes() + slots_.bytes(); }

 private:
  struct Descent {
    RowHandle row;
    int64_t next_use;
  };

  void list(RowHandle r, int64_t next_use);
  void fall(RowHandle r, uint32_t window_base, StepPlan* plan);
  int32_t place(const Descent& descent);

  RowTable* rows_;
  const int64_t first_slot_;
  const bool backed_;
  std::unique_ptr<EvictionPolicy> policy_;
  int64_t num_listed_ = 0;
  Slots slots_;  // from 0
  std::vector<Descent> descending_;
  std::vector<TableCounts> counts_;
};

}  // namespace te
