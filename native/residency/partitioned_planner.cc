#include "residency/partitioned_planner.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/thread_pool.h"
#include "residency/plan_merger.h"

namespace te {
namespace {

constexpr size_t kIdsPerThread = 8192;  // fewer are not worth waking one

std::vector<std::unique_ptr<SinglePlanner>> planners_of(const Partitioning& partitioning) {
  std::vector<std::unique_ptr<SinglePlanner>> out;
  for (int s = 0; s < partitioning.count(); ++s) {
    out.push_back(std::make_unique<SinglePlanner>(partitioning.part(s)));
  }
  return out;
}

}  // namespace

PartitionedPlanner::PartitionedPlanner(const PlannerOptions& options, int num_partitions,
                                       int num_threads)
    : partitioning_(options, num_partitions),
      num_threads_(num_threads),
      partitions_(planners_of(partitioning_)),
      merger_(&partitioning_),
      asked_(&partitioning_) {}

int PartitionedPlanner::num_threads_for(size_t num_ids) const {
  return static_cast<int>(std::min<size_t>(num_threads_, 1 + num_ids / kIdsPerThread));
}

// Calls fn(s, partition) for every partition, on as many threads as so many ids are worth.
void PartitionedPlanner::for_partitions(
    size_t num_ids, const std::function<void(size_t, SinglePlanner*)>& fn) const {
  parallel_for(static_cast<int64_t>(num()), num_threads_for(num_ids), [&](int64_t s) {
    fn(static_cast<size_t>(s), partitions_[static_cast<size_t>(s)].get());
  });
}

void PartitionedPlanner::push(const std::vector<Segment>& segments) {
  require_countable(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_all();
  failure_.guard(Failure::Left::kRows, [&] { window_.push_back(push_locked(segments, false)); });
}

MergedBatch PartitionedPlanner::push_locked(const std::vector<Segment>& segments, bool aside) {
  const int num_threads = num_threads_for(static_cast<size_t>(num_ids_of(segments)));
  return merger_.push(
      segments, num_threads,
      [&](size_t s, const std::vector<Segment>& mine, PlainVector<int32_t>* inverse) {
        SinglePlanner* partition = partitions_[s].get();
        aside ? partition->push_aside(mine) : partition->push(mine);
        return partition->take_occurrences(inverse);
      });
}

std::shared_ptr<StepPlan> PartitionedPlanner::plan(int64_t depth) {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_all();
  if (window_.empty()) throw std::logic_error("plan: the window is empty");
  require_room(depth);
  return failure_.guard(Failure::Left::kNothing, [&] {
    MergedBatch batch = std::move(window_.front());
    window_.pop_front();
    return plan_batch(std::move(batch),
                      [depth](SinglePlanner* partition) { return partition->plan(depth); });
  });
}

std::shared_ptr<StepPlan> PartitionedPlanner::plan_now(const std::vector<Segment>& segments) {
  require_countable(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_all();
  MergedBatch batch =
      failure_.guard(Failure::Left::kRows, [&] { return push_locked(segments, true); });
  try {
    require_room(0);
  } catch (...) {
    failure_.guard(Failure::Left::kRows, [&] {
      for_partitions(batch.inverse.size(),
                     [](size_t, SinglePlanner* partition) { partition->drop_aside(); });
    });
    throw;
  }
  return failure_.guard(Failure::Left::kNothing, [&] {
    return plan_batch(std::move(batch),
                      [](SinglePlanner* partition) { return partition->plan_aside(); });
  });
}

// Throws what a partition would throw, before any of them has changed.
void PartitionedPlanner::require_room(int64_t depth) const {
  // The partitions hold the same plans.
  if (const int64_t held = partitions_[0]->num_held(depth); held > 0) throw TooManyHeld(held);
  int64_t missing = 0;
  for (const auto& partition : partitions_) missing += partition->num_missing(depth);
  const PlannerOptions& o = partitioning_.options();
  if (missing > 0) throw NoCapacity(missing, o.cached_slots + o.lower_slots);
}

std::shared_ptr<StepPlan> PartitionedPlanner::plan_batch(
    MergedBatch batch, const std::function<std::shared_ptr<StepPlan>(SinglePlanner*)>& plan_part) {
  const size_t num_ids = batch.inverse.size();
  PlanMerger merger(&partitioning_, &batch);
  for_partitions(num_ids,
                 [&](size_t s, SinglePlanner* partition) { merger.add(s, plan_part(partition)); });
  std::shared_ptr<StepPlan> plan = merger.merge(num_threads_for(num_ids));
  plan->inverse = std::move(batch.inverse);
  plan->group = std::move(batch.group);
  plan->group_start = std::move(batch.group_start);
  return plan;
}

void PartitionedPlanner::release(int64_t number, bool updated, bool used) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& partition : partitions_) partition->release(number, updated, used);
}

void PartitionedPlanner::cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.any()) return;
  failure_.guard(Failure::Left::kRows, [&] {
    for (const auto& partition : partitions_) partition->cancel();
    window_.clear();
  });
}

void PartitionedPlanner::fail(const char* cause) {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.note(Failure::Left::kNothing, cause);
}

}  // namespace te
