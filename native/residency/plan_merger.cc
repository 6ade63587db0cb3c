#include "residency/plan_merger.h"

#include <array>
#include <utility>

#include "core/check.h"
#include "core/thread_pool.h"

namespace te {

PlanMerger::PlanMerger(const Partitioning* partitioning, const MergedBatch* batch)
    : partitioning_(*partitioning),
      batch_(*batch),
      has_lower_(partitioning->options().lower_slots > 0),
      plan_(std::make_shared<StepPlan>()),
      parts_(static_cast<size_t>(partitioning->count())) {
  staged_before_.resize((batch_.num_pieces() + 1) * num());
}

void PlanMerger::add(size_t s, std::shared_ptr<StepPlan> part) {
  // Which of its rows to stage belong to which piece.
  const auto& staged = part->staged;
  size_t i = 0;
  for (size_t p = 0; p <= batch_.num_pieces(); ++p) {
    while (i < staged.size() && staged[i] < batch_.partitions_unique[p * num() + s]) ++i;
    staged_before_[p * num() + s] = static_cast<int32_t>(i);
  }
  parts_[s] = std::move(part);
}

std::shared_ptr<StepPlan> PlanMerger::merge(int num_threads) {
  for (const auto& part : parts_) {
    TE_CHECK(part != nullptr && part->number == parts_[0]->number, "all made the same plan");
  }
  plan_->number = parts_[0]->number;
  make_room();
  const size_t num_pieces = batch_.num_pieces();
  parallel_for(static_cast<int64_t>(num_pieces + num()), num_threads, [&](int64_t i) {
    const size_t p = static_cast<size_t>(i);
    p < num_pieces ? merge_unique(p) : merge_evicted(p - num_pieces);
  });
  return plan_;
}

void PlanMerger::make_room() {
  for (size_t p = 0; p <= batch_.num_pieces(); ++p) {
    size_t n = 0;
    for (size_t s = 0; s < num(); ++s) n += static_cast<size_t>(staged_before_[p * num() + s]);
    first_staged_.push_back(n);
  }
  first_victim_.push_back(0);
  first_fallen_.push_back(0);
  for (const auto& part : parts_) {
    first_victim_.push_back(first_victim_.back() + part->victim_keys.size());
    first_fallen_.push_back(first_fallen_.back() + part->fallen_keys.size());
    plan_->overflow += part->overflow;
  }
  plan_->keys.resize(batch_.num_unique());
  plan_->tables.resize(batch_.num_unique());
  plan_->slots.resize(batch_.num_unique());
  plan_->staged.resize(first_staged_.back());
  if (has_lower_) plan_->staged_from.resize(first_staged_.back());
  plan_->victim_keys.resize(first_victim_.back());
  plan_->victim_tables.resize(first_victim_.back());
  plan_->victim_slots.resize(first_victim_.back());
  plan_->victim_dirty.resize(first_victim_.back());
  if (has_lower_) plan_->victim_to.resize(first_victim_.back());
  plan_->fallen_keys.resize(first_fallen_.back());
  plan_->fallen_tables.resize(first_fallen_.back());
  plan_->fallen_slots.resize(first_fallen_.back());
  plan_->fallen_dirty.resize(first_fallen_.back());
}

// The unique rows that first occur in piece `p`.
void PlanMerger::merge_unique(size_t p) {
  std::array<int32_t, Partitioning::kMaxPartitions> next;
  std::array<int32_t, Partitioning::kMaxPartitions> next_staged;
  for (size_t s = 0; s < num(); ++s) {
    next[s] = batch_.partitions_unique[p * num() + s];
    next_staged[s] = staged_before_[p * num() + s];
  }
  size_t at = first_staged_[p];
  const size_t end = static_cast<size_t>(batch_.first_unique[p + 1]);
  for (size_t u = static_cast<size_t>(batch_.first_unique[p]); u < end; ++u) {
    const uint8_t s = batch_.partitions[u];
    const StepPlan& part = *parts_[s];
    const int32_t mine = next[s]++;
    const size_t i = static_cast<size_t>(mine);
    const uint16_t table = part.tables[i];
    plan_->tables[u] = table;
    plan_->keys[u] = partitioning_.outer_id(s, table, part.keys[i]);
    plan_->slots[u] = partitioning_.outer_slot(s, table, plan_->keys[u], part.slots[i]);
    const size_t k = static_cast<size_t>(next_staged[s]);
    if (k == part.staged.size() || part.staged[k] != mine) continue;
    ++next_staged[s];
    if (has_lower_) plan_->staged_from[at] = partitioning_.outer_lower_slot(s, part.staged_from[k]);
    plan_->staged[at++] = static_cast<int32_t>(u);
  }
}

// What partition `s` evicts. Rows of whole tables are never among it.
void PlanMerger::merge_evicted(size_t s) {
  const StepPlan& part = *parts_[s];
  const int partition = static_cast<int>(s);
  for (size_t i = 0, v = first_victim_[s]; i < part.victim_keys.size(); ++i, ++v) {
    plan_->victim_keys[v] = part.victim_keys[i];
    plan_->victim_tables[v] = part.victim_tables[i];
    plan_->victim_slots[v] =
        partitioning_.outer_slot(partition, part.victim_tables[i], 0, part.victim_slots[i]);
    plan_->victim_dirty[v] = part.victim_dirty[i];
    if (has_lower_)
      plan_->victim_to[v] = partitioning_.outer_lower_slot(partition, part.victim_to[i]);
  }
  for (size_t i = 0, w = first_fallen_[s]; i < part.fallen_keys.size(); ++i, ++w) {
    plan_->fallen_keys[w] = part.fallen_keys[i];
    plan_->fallen_tables[w] = part.fallen_tables[i];
    plan_->fallen_slots[w] = partitioning_.outer_lower_slot(partition, part.fallen_slots[i]);
    plan_->fallen_dirty[w] = part.fallen_dirty[i];
  }
}

}  // namespace te
