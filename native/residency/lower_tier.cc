#include "residency/lower_tier.h"

namespace te {

LowerTier::LowerTier(RowTable* rows, const std::string& policy, int64_t first_slot,
                     int64_t num_slots, bool backed, size_t num_tables)
    : rows_(rows),
      first_slot_(first_slot),
      backed_(backed),
      policy_(make_policy(policy, {rows, first_slot, num_slots, 0})),
      slots_(0, num_slots),
      counts_(num_tables) {}

int64_t LowerTier::room() const {
  TE_CHECK(descending_.empty(), "nothing descends");
  return slots_.num_free() + num_listed_;
}

int32_t LowerTier::give(RowHandle r) {
  Row& row = (*rows_)[r];
  TE_CHECK(holds(row), "the row is here");
  if (row.listed) {
    policy_->remove(r);
    row.listed = 0;
    --num_listed_;
  }
  policy_->leave(r);
  const int32_t slot = static_cast<int32_t>(row.slot - first_slot_);
  slots_.give_back(slot);
  row.slot = kNoSlot;
  return slot;
}

void LowerTier::place_descended(uint32_t window_base, StepPlan* plan) {
  // Room first, so that no row falls out in the plan that brought it.
  while (slots_.num_free() < static_cast<int64_t>(descending_.size())) {
    int64_t next_use;
    const RowHandle r = policy_->evict(&next_use);
    if (r == kNoRow) break;
    fall(r, window_base, plan);
  }
  for (const Descent& descent : descending_) plan->victim_to.push_back(place(descent));
  for (const Descent& descent : descending_) {
    const Row& row = (*rows_)[descent.row];
    if (row.slot == kNoSlot && row.mark < window_base) rows_->erase(descent.row);
  }
  descending_.clear();
}

// Takes the slot from a row that the policy has chosen.
void LowerTier::fall(RowHandle r, uint32_t window_base, StepPlan* plan) {
  Row& row = (*rows_)[r];
  row.listed = 0;
  --num_listed_;
  plan->fallen_keys.push_back(row.id());
  plan->fallen_tables.push_back(static_cast<uint16_t>(row.table));
  plan->fallen_dirty.push_back(row.dirty);
  TableCounts& counts = counts_[row.table];
  ++counts.evicted;
  counts.written_back += row.dirty;
  plan->fallen_slots.push_back(give(r));
  row.dirty = 0;
  // A row with a use inside the window stays known: the batches there name it by its handle.
  if (row.mark < window_base) rows_->erase(r);
}

// The slot of a row that descends; kNoSlot when all are taken, and it passes on to the tier below.
int32_t LowerTier::place(const Descent& descent) {
  Row& row = (*rows_)[descent.row];
  TE_CHECK(row.slot == kNoSlot && row.pins == 0 && !row.listed, "a row that descends has no slot");
  TableCounts& counts = counts_[row.table];
  ++counts.staged;
  if (slots_.num_free() == 0) {
    ++counts.overflow;
    ++counts.evicted;
    counts.written_back += row.dirty;
    row.dirty = 0;
    return kNoSlot;
  }
  const int32_t slot = slots_.take();
  row.slot = static_cast<int32_t>(first_slot_ + slot);
  policy_->use(descent.row);
  list(descent.row, descent.next_use);
  return slot;
}

void LowerTier::list(RowHandle r, int64_t next_use) {
  Row& row = (*rows_)[r];
  if (!backed_ && row.dirty) return;  // it must stay
  row.listed = 1;
  ++num_listed_;
  policy_->insert(r, next_use);
}

void LowerTier::note(size_t table, int64_t num_asked, int64_t num_missed) {
  counts_[table].lookups += num_asked;
  counts_[table].unique += num_asked;
  counts_[table].misses += num_missed;
}

void LowerTier::mark_clean(Row* row) {
  TE_CHECK(holds(*row), "the row is here");
  counts_[row->table].written_back += row->dirty;
  row->dirty = 0;
}

}  // namespace te
