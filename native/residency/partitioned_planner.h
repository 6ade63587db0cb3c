// A planner made of partitions that plan at the same time: for large pools.
//
// Every partition is a SinglePlanner over the rows and slots that Partitioning deals to it. A step
// takes three turns: the batch's ids are dealt to the partitions, every partition works alone, and
// what they found is merged (BatchMerger, PlanMerger). How many partitions there are is part of the
// pool's configuration, since it decides which rows are evicted; how many threads run them is not.
//
// Threading: as Planner's. Loops run on core/thread_pool and on the calling thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "residency/batch_merger.h"
#include "residency/partitioning.h"
#include "residency/planner.h"
#include "residency/single_planner.h"

namespace te {

class PartitionedPlanner final : public Planner {
 public:
  // See make_planner. Throws std::invalid_argument.
  PartitionedPlanner(const PlannerOptions& options, int num_partitions, int num_threads);

  // NoCapacity and TooManyHeld leave every partition as it was.
  void push(const std::vector<Segment>& segments) override;
  std::shared_ptr<StepPlan> plan(int64_t depth) override;
  std::shared_ptr<StepPlan> plan_now(const std::vector<Segment>& segments) override;
  void release(int64_t number, bool updated, bool used = true) override;
  void cancel() override;
  void find(const std::vector<Segment>& segments, int32_t* slots, int num_threads) override;
  bool holds_for_good(const std::vector<Segment>&, int) override { return false; }
  ResidentRows dirty_rows() override;
  void mark_clean() override;
  void fail(const char* cause) override;

  std::vector<TableCounts> counts(const std::optional<std::vector<int64_t>>& used) const override;
  std::vector<TableCounts> lower_counts() const override;
  int64_t num_lower_resident() const override;
  int64_t window_size() const override;
  int64_t num_resident() const override;
  bool all_resident() const override { return false; }  // partitions share slots
  int64_t overhead_bytes() const override;
  int64_t first_lower_slot() const override { return partitioning_.first_lower_slot(); }
  int num_partitions() const override { return partitioning_.count(); }

 private:
  size_t num() const { return partitions_.size(); }
  int num_threads_for(size_t num_ids) const;
  void for_partitions(size_t num_ids, const std::function<void(size_t, SinglePlanner*)>& fn) const;
  MergedBatch push_locked(const std::vector<Segment>& segments, bool aside);
  void require_room(int64_t depth) const;
  std::shared_ptr<StepPlan> plan_batch(
      MergedBatch batch, const std::function<std::shared_ptr<StepPlan>(SinglePlanner*)>& plan);

  const Partitioning partitioning_;
  const int num_threads_;
  const std::vector<std::unique_ptr<SinglePlanner>> partitions_;
  mutable std::mutex mutex_;  // guards all below, and what the partitions do
  std::deque<MergedBatch> window_;
  BatchMerger merger_;
  DealtIds asked_;  // for `find`
  Failure failure_;
};

}  // namespace te
