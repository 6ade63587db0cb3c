#include "residency/partitioned_planner.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "core/thread_pool.h"

namespace te {
namespace {

constexpr size_t kIdsPerThread = 8192;  // fewer are not worth waking one

std::vector<std::unique_ptr<Planner>> planners_of(const Partitioning& partitioning) {
  std::vector<std::unique_ptr<Planner>> out;
  for (int s = 0; s < partitioning.count(); ++s) {
    out.push_back(std::make_unique<Planner>(partitioning.count() == 1 ? partitioning.options()
                                                                      : partitioning.part(s)));
  }
  return out;
}

}  // namespace

PartitionedPlanner::PartitionedPlanner(const PlannerOptions& options, int num_partitions,
                                       int num_threads)
    : partitioning_(options, num_partitions),
      num_threads_(num_threads),
      partitions_(planners_of(partitioning_)),
      dealt_(&partitioning_),
      found_(num()) {}

int PartitionedPlanner::num_threads_for(size_t num_ids) const {
  return static_cast<int>(std::min<size_t>(num_threads_, 1 + num_ids / kIdsPerThread));
}

// Calls fn(s, partition) for every partition, on as many threads as so many ids are worth.
void PartitionedPlanner::for_partitions(size_t num_ids,
                                        const std::function<void(size_t, Planner*)>& fn) const {
  parallel_for(static_cast<int64_t>(num()), num_threads_for(num_ids), [&](int64_t s) {
    fn(static_cast<size_t>(s), partitions_[static_cast<size_t>(s)].get());
  });
}

// --- push -----------------------------------------------------------------------------------

void PartitionedPlanner::push(const std::vector<Segment>& segments) {
  if (is_plain()) return plain()->push(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  window_.push_back(push_locked(segments, false));
}

PartitionedPlanner::Batch PartitionedPlanner::push_locked(const std::vector<Segment>& segments,
                                                          bool ahead) {
  size_t num_ids = 0;
  for (const Segment& s : segments) num_ids += static_cast<size_t>(s.num_ids);
  const int num_threads = num_threads_for(num_ids);
  dealt_.deal(segments, num_threads);
  const size_t num_pieces = dealt_.pieces().size();
  const auto for_pieces = [&](const auto& fn) {
    parallel_for(static_cast<int64_t>(num_pieces), num_threads,
                 [&](int64_t p) { fn(static_cast<size_t>(p)); });
  };
  Batch batch;
  batch.partitions_unique.resize((num_pieces + 1) * num());
  grouped_.resize(num_ids);
  for_partitions(num_ids, [&](size_t s, Planner* partition) {
    const std::vector<Segment> mine = dealt_.segments_of(s);
    ahead ? partition->push_ahead(mine) : partition->push(mine);
    group(s, ahead, &batch);
  });

  for (size_t p = 0; p <= num_pieces; ++p) {
    int32_t n = 0;
    for (size_t s = 0; s < num(); ++s) n += batch.partitions_unique[p * num() + s];
    batch.first_unique.push_back(n);
  }
  int32_t num_unique = 0;
  for (size_t s = 0; s < num(); ++s) {
    found_[s].first_unique = num_unique;
    num_unique += batch.partitions_unique[num_pieces * num() + s];
  }
  uniques_.resize(static_cast<size_t>(num_unique));
  batch.partitions.resize(static_cast<size_t>(num_unique));
  batch.inverse.resize(num_ids);
  batch.group.resize(num_ids);
  batch.group_start.resize(static_cast<size_t>(num_unique) + 1);
  std::vector<int32_t> first(num_pieces + 1);  // in `group`, of each piece's unique rows
  for_pieces([&](size_t p) { first[p + 1] = name_unique(p, &batch); });
  for (size_t p = 0; p < num_pieces; ++p) first[p + 1] += first[p];
  for_pieces([&](size_t p) {
    merge_inverse(p, &batch);
    merge_groups(p, first[p], &batch);
  });
  batch.group_start.back() = static_cast<int32_t>(num_ids);
  return batch;
}

// Groups the occurrences of partition `s` by row: a counting sort, stable.
void PartitionedPlanner::group(size_t s, bool ahead, Batch* batch) {
  Found& found = found_[s];
  const int32_t num_unique = partitions_[s]->take_occurrences(ahead, &found.inverse);
  const int32_t* inverse = found.inverse.data();
  const int32_t begin = dealt_.begin(0, s);
  // Counts at u + 2 become starts at u + 1, and those the cursors that end as the next row's start.
  found.start.assign(static_cast<size_t>(num_unique) + 2, 0);
  int32_t* start = found.start.data();
  int32_t seen = 0;
  for (size_t p = 0; p < dealt_.pieces().size(); ++p) {
    batch->partitions_unique[p * num() + s] = seen;
    for (int32_t i = dealt_.begin(p, s); i < dealt_.begin(p + 1, s); ++i) {
      const int32_t u = inverse[i - begin];
      ++start[u + 2];
      seen = std::max(seen, u + 1);
    }
  }
  batch->partitions_unique[dealt_.pieces().size() * num() + s] = seen;
  for (int32_t u = 2; u < num_unique + 2; ++u) start[u] += start[u - 1];
  for (size_t i = 0; i < found.inverse.size(); ++i) {
    grouped_[static_cast<size_t>(begin + start[inverse[i] + 1]++)] =
        dealt_.occurrences()[static_cast<size_t>(begin) + i];
  }
  found.start.pop_back();
}

// Numbers the unique rows that first occur in piece `p`, in that order; returns how many
// occurrences they have.
int32_t PartitionedPlanner::name_unique(size_t p, Batch* batch) {
  const DealtIds::Piece& piece = dealt_.pieces()[p];
  const int32_t* before = batch->partitions_unique.data() + p * num();
  const int32_t* behind = before + num();
  std::array<uint64_t, DealtIds::kPieceIds / 64> is_first{};
  for (size_t s = 0; s < num(); ++s) {
    const int32_t* grouped = grouped_.data() + dealt_.begin(0, s);
    for (int32_t u = before[s]; u < behind[s]; ++u) {
      const int32_t at = grouped[found_[s].start[static_cast<size_t>(u)]] - piece.first;
      is_first[static_cast<size_t>(at / 64)] |= uint64_t{1} << (at % 64);
    }
  }
  std::array<int32_t, Partitioning::kMaxPartitions> next;
  std::copy_n(before, num(), next.begin());
  const uint8_t* partitions = dealt_.partitions() + piece.first;
  int32_t unique = batch->first_unique[p];
  int32_t num_occurrences = 0;
  for (size_t word = 0; word < is_first.size(); ++word) {
    for (uint64_t left = is_first[word]; left != 0; left &= left - 1) {
      const uint8_t s = partitions[word * 64 + static_cast<size_t>(__builtin_ctzll(left))];
      const size_t u = static_cast<size_t>(next[s]++);
      const Found& found = found_[s];
      uniques_[static_cast<size_t>(found.first_unique) + u] = unique;
      batch->partitions[static_cast<size_t>(unique++)] = s;
      num_occurrences += found.start[u + 1] - found.start[u];
    }
  }
  return num_occurrences;
}

void PartitionedPlanner::merge_inverse(size_t p, Batch* batch) {
  const DealtIds::Piece& piece = dealt_.pieces()[p];
  std::array<const int32_t*, Partitioning::kMaxPartitions> inverse;
  std::array<const int32_t*, Partitioning::kMaxPartitions> uniques;
  for (size_t s = 0; s < num(); ++s) {
    inverse[s] = found_[s].inverse.data() + (dealt_.begin(p, s) - dealt_.begin(0, s));
    uniques[s] = uniques_.data() + found_[s].first_unique;
  }
  const uint8_t* partitions = dealt_.partitions() + piece.first;
  int32_t* out = batch->inverse.data() + piece.first;
  for (int32_t i = 0; i < piece.num_ids; ++i)
    out[i] = uniques[partitions[i]][*inverse[partitions[i]]++];
}

// The groups of the unique rows that first occur in piece `p`: from `first` on.
void PartitionedPlanner::merge_groups(size_t p, int32_t first, Batch* batch) {
  std::array<const int32_t*, Partitioning::kMaxPartitions> start;  // of each partition's next row
  std::array<const int32_t*, Partitioning::kMaxPartitions> grouped;
  for (size_t s = 0; s < num(); ++s) {
    start[s] = found_[s].start.data() + batch->partitions_unique[p * num() + s];
    grouped[s] = grouped_.data() + dealt_.begin(0, s);
  }
  int32_t* out = batch->group.data() + first;
  for (int32_t u = batch->first_unique[p]; u < batch->first_unique[p + 1]; ++u) {
    const uint8_t s = batch->partitions[static_cast<size_t>(u)];
    batch->group_start[static_cast<size_t>(u)] = static_cast<int32_t>(out - batch->group.data());
    const int32_t* from = grouped[s] + start[s][0];
    const int32_t* end = grouped[s] + start[s][1];
    ++start[s];
    while (from != end) *out++ = *from++;
  }
}

// --- plan -----------------------------------------------------------------------------------

std::shared_ptr<StepPlan> PartitionedPlanner::plan(int64_t depth) {
  if (is_plain()) return plain()->plan(depth);
  std::lock_guard<std::mutex> lock(mutex_);
  if (window_.empty()) throw std::logic_error("plan: the window is empty");
  check(depth);
  Batch batch = std::move(window_.front());
  window_.pop_front();
  return plan_locked(std::move(batch), depth);
}

std::shared_ptr<StepPlan> PartitionedPlanner::plan_now(const std::vector<Segment>& segments) {
  if (is_plain()) return plain()->plan_now(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  Batch batch = push_locked(segments, true);
  try {
    check(0);
  } catch (...) {
    for_partitions(batch.inverse.size(),
                   [](size_t, Planner* partition) { partition->take_back_ahead(); });
    throw;
  }
  return plan_locked(std::move(batch), 0);
}

// Throws what a partition would throw, before any of them has changed.
void PartitionedPlanner::check(int64_t depth) const {
  // The partitions hold the same plans.
  if (const int64_t held = partitions_[0]->num_held(depth); held > 0) throw TooManyHeld(held);
  int64_t missing = 0;
  for (const auto& partition : partitions_) missing += partition->num_missing(depth);
  const PlannerOptions& o = partitioning_.options();
  if (missing > 0) throw NoCapacity(missing, o.cached_slots + o.lower_slots);
}

// The partitions' plans of one batch, on their way to one.
struct PartitionedPlanner::Merge {
  const Partitioning& partitioning;
  const Batch& batch;
  const std::vector<std::shared_ptr<StepPlan>>& parts;
  StepPlan* const plan;
  const bool has_lower;
  std::vector<int32_t> staged_before;  // (P + 1, S) of each partition, before a piece's unique rows
  std::vector<size_t> first_staged;    // (P + 1)
  std::vector<size_t> first_victim;    // (S + 1)
  std::vector<size_t> first_fallen;    // (S + 1)

  size_t num() const { return parts.size(); }

  // Which rows of partition `s` to stage belong to which piece.
  void count_staged(size_t s) {
    const auto& staged = parts[s]->staged;
    size_t i = 0;
    for (size_t p = 0; p <= batch.num_pieces(); ++p) {
      while (i < staged.size() && staged[i] < batch.partitions_unique[p * num() + s]) ++i;
      staged_before[p * num() + s] = static_cast<int32_t>(i);
    }
  }

  void make_room() {
    for (size_t p = 0; p <= batch.num_pieces(); ++p) {
      size_t n = 0;
      for (size_t s = 0; s < num(); ++s) n += static_cast<size_t>(staged_before[p * num() + s]);
      first_staged.push_back(n);
    }
    first_victim.push_back(0);
    first_fallen.push_back(0);
    for (const auto& part : parts) {
      first_victim.push_back(first_victim.back() + part->victim_keys.size());
      first_fallen.push_back(first_fallen.back() + part->fallen_keys.size());
      plan->overflow += part->overflow;
    }
    plan->keys.resize(batch.num_unique());
    plan->tables.resize(batch.num_unique());
    plan->slots.resize(batch.num_unique());
    plan->staged.resize(first_staged.back());
    if (has_lower) plan->staged_from.resize(first_staged.back());
    plan->victim_keys.resize(first_victim.back());
    plan->victim_tables.resize(first_victim.back());
    plan->victim_slots.resize(first_victim.back());
    plan->victim_dirty.resize(first_victim.back());
    if (has_lower) plan->victim_to.resize(first_victim.back());
    plan->fallen_keys.resize(first_fallen.back());
    plan->fallen_tables.resize(first_fallen.back());
    plan->fallen_slots.resize(first_fallen.back());
    plan->fallen_dirty.resize(first_fallen.back());
  }

  // The unique rows that first occur in piece `p`.
  void merge_unique(size_t p) {
    std::array<int32_t, Partitioning::kMaxPartitions> next;
    std::array<int32_t, Partitioning::kMaxPartitions> next_staged;
    for (size_t s = 0; s < num(); ++s) {
      next[s] = batch.partitions_unique[p * num() + s];
      next_staged[s] = staged_before[p * num() + s];
    }
    size_t at = first_staged[p];
    const size_t end = static_cast<size_t>(batch.first_unique[p + 1]);
    for (size_t u = static_cast<size_t>(batch.first_unique[p]); u < end; ++u) {
      const uint8_t s = batch.partitions[u];
      const StepPlan& part = *parts[s];
      const int32_t mine = next[s]++;
      const size_t i = static_cast<size_t>(mine);
      const uint16_t table = part.tables[i];
      plan->tables[u] = table;
      plan->keys[u] = partitioning.outer_id(s, table, part.keys[i]);
      plan->slots[u] = partitioning.outer_slot(s, table, plan->keys[u], part.slots[i]);
      const size_t k = static_cast<size_t>(next_staged[s]);
      if (k == part.staged.size() || part.staged[k] != mine) continue;
      ++next_staged[s];
      if (has_lower) plan->staged_from[at] = partitioning.outer_lower_slot(s, part.staged_from[k]);
      plan->staged[at++] = static_cast<int32_t>(u);
    }
  }

  // What partition `s` evicts. Rows of whole tables are never among it.
  void merge_evicted(size_t s) {
    const StepPlan& part = *parts[s];
    const int partition = static_cast<int>(s);
    for (size_t i = 0, v = first_victim[s]; i < part.victim_keys.size(); ++i, ++v) {
      plan->victim_keys[v] = part.victim_keys[i];
      plan->victim_tables[v] = part.victim_tables[i];
      plan->victim_slots[v] =
          partitioning.outer_slot(partition, part.victim_tables[i], 0, part.victim_slots[i]);
      plan->victim_dirty[v] = part.victim_dirty[i];
      if (has_lower)
        plan->victim_to[v] = partitioning.outer_lower_slot(partition, part.victim_to[i]);
    }
    for (size_t i = 0, w = first_fallen[s]; i < part.fallen_keys.size(); ++i, ++w) {
      plan->fallen_keys[w] = part.fallen_keys[i];
      plan->fallen_tables[w] = part.fallen_tables[i];
      plan->fallen_slots[w] = partitioning.outer_lower_slot(partition, part.fallen_slots[i]);
      plan->fallen_dirty[w] = part.fallen_dirty[i];
    }
  }
};

std::shared_ptr<StepPlan> PartitionedPlanner::plan_locked(Batch batch, int64_t depth) {
  const size_t num_ids = batch.inverse.size();
  const size_t num_pieces = batch.num_pieces();
  std::vector<std::shared_ptr<StepPlan>> parts(num());
  auto plan = std::make_shared<StepPlan>();
  Merge merge{partitioning_,
              batch,
              parts,
              plan.get(),
              partitioning_.options().lower_slots > 0,
              {},
              {},
              {},
              {}};
  merge.staged_before.resize((num_pieces + 1) * num());
  for_partitions(num_ids, [&](size_t s, Planner* partition) {
    parts[s] = partition->plan(depth);
    merge.count_staged(s);
  });
  plan->number = parts[0]->number;
  merge.make_room();
  parallel_for(static_cast<int64_t>(num_pieces + num()), num_threads_for(num_ids), [&](int64_t i) {
    const size_t p = static_cast<size_t>(i);
    p < num_pieces ? merge.merge_unique(p) : merge.merge_evicted(p - num_pieces);
  });
  plan->inverse = std::move(batch.inverse);
  plan->group = std::move(batch.group);
  plan->group_start = std::move(batch.group_start);
  return plan;
}

void PartitionedPlanner::release(int64_t number, bool updated) {
  if (is_plain()) return plain()->release(number, updated);
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& partition : partitions_) partition->release(number, updated);
}

void PartitionedPlanner::cancel() {
  if (is_plain()) return plain()->cancel();
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& partition : partitions_) partition->cancel();
  window_.clear();
}

void PartitionedPlanner::renumber() {
  if (is_plain()) return plain()->renumber();
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& partition : partitions_) partition->renumber();
}

}  // namespace te
