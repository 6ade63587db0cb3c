#include "residency/upper_tier.h"

namespace te {

UpperTier::UpperTier(RowTable* rows, const PlannerOptions& options)
    : rows_(*rows),
      backed_(options.backed),
      first_lower_(static_cast<uint32_t>(options.num_upper_slots())),
      cached_(options.whole_slots, options.cached_slots),
      overflow_(options.whole_slots + options.cached_slots, options.overflow_slots),
      policy_(make_policy(options.policy, {rows, options.whole_slots, options.cached_slots,
                                           options.overflow_slots})),
      counts_(options.tables.size()) {
  if (options.lower_slots > 0) {
    lower_ = std::make_unique<LowerTier>(rows, options.policy, first_lower_, options.lower_slots,
                                         options.backed, counts_.size());
  }
}

void UpperTier::postpone() {
  policy_->postpone();
  if (lower_) lower_->postpone();
}

void UpperTier::advance(int64_t plan) {
  policy_->advance(plan);
  if (lower_) lower_->advance(plan);
}

void UpperTier::evict_leaving(uint32_t window_base, StepPlan* plan) {
  for (const Leaving& leaving : leaving_) evict(leaving.row, leaving.next_use, window_base, plan);
  leaving_.clear();
}

bool UpperTier::place(RowHandle r, uint32_t window_base, StepPlan* plan) {
  if (cached_.num_free() == 0) {
    int64_t next_use;
    const RowHandle victim = policy_->evict(&next_use);
    if (victim != kNoRow) {
      rows_[victim].listed = 0;
      --num_listed_;
      evict(victim, next_use, window_base, plan);
    }
  }
  const bool overflows = cached_.num_free() == 0;
  Row& row = rows_[r];
  TE_CHECK(row.slot == kNoSlot && row.pins == 0, "a row that gets a slot has none");
  row.slot = overflows ? overflow_.take() : cached_.take();
  row.pins = 1;
  return overflows;
}

// REQUIRES: nothing pins the row, and it is not listed.
void UpperTier::evict(RowHandle r, int64_t next_use, uint32_t window_base, StepPlan* plan) {
  policy_->leave(r);
  Row& row = rows_[r];
  TE_CHECK(row.pins == 0 && !row.listed && holds(row), "a victim is here, unpinned and unlisted");
  plan->victim_keys.push_back(row.id());
  plan->victim_tables.push_back(static_cast<uint16_t>(row.table));
  plan->victim_slots.push_back(row.slot);
  plan->victim_dirty.push_back(row.dirty);
  TableCounts& counts = counts_[row.table];
  ++counts.evicted;
  counts.written_back += row.dirty;
  (row.slot >= cached_.end() ? overflow_ : cached_).give_back(row.slot);
  row.slot = kNoSlot;
  if (lower_) {
    lower_->descend(r, next_use);
    return;
  }
  row.dirty = 0;
  // A row with a use inside the window stays known: the batches there name it by its handle.
  if (row.mark < window_base) rows_.erase(r);
}

void UpperTier::finish_plan(uint32_t window_base, StepPlan* plan) {
  if (lower_) lower_->place_descended(window_base, plan);
}

size_t UpperTier::bytes() const {
  return policy_->bytes() + cached_.bytes() + overflow_.bytes() + (lower_ ? lower_->bytes() : 0);
}

}  // namespace te
