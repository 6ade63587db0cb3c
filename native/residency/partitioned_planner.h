// The planner of a pool, cut into partitions that plan at the same time.
//
// A pool of one partition is a Planner, bit for bit. With more, every partition is a Planner over
// the rows and slots that Partitioning deals to it, and a step takes three turns: the batch's ids
// are told apart by partition (DealtIds), every partition works alone, and what they found is
// merged. The merged plan is a plan like any other: unique rows stand in the order of first
// occurrence and occurrences in batch order, so that only slots and victims tell that there are
// partitions. How many there are is part of the pool's configuration, since it decides who is
// evicted; how many threads run them is not.
//
// Legend: N occurrences, U unique rows, S partitions, P pieces of the batch (DealtIds).
//
// Threading: as Planner's. Loops run on core/thread_pool and on the calling thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/plain_vector.h"
#include "residency/dealt_ids.h"
#include "residency/partitioning.h"
#include "residency/planner.h"

namespace te {

class PartitionedPlanner {
 public:
  // More than one partition want a store at the bottom, and a slot each in every tier. Throws
  // std::invalid_argument.
  PartitionedPlanner(const PlannerOptions& options, int num_partitions, int num_threads);

  // As Planner's; NoCapacity and TooManyHeld leave every partition as it was.
  void push(const std::vector<Segment>& segments);
  std::shared_ptr<StepPlan> plan(int64_t depth);
  std::shared_ptr<StepPlan> plan_now(const std::vector<Segment>& segments);
  void release(int64_t number, bool updated);
  void cancel();
  void find(int32_t table, const int64_t* ids, int64_t n, int32_t* slots);
  ResidentRows dirty_rows();
  void mark_clean();
  void renumber();

  std::vector<TableCounts> counts() const;
  std::vector<TableCounts> lower_counts() const;
  int64_t first_lower_slot() const { return partitioning_.first_lower_slot(); }
  int64_t num_lower_resident() const;
  int64_t window_size() const;
  int64_t num_resident() const;
  bool all_resident() const;
  int64_t overhead_bytes() const;
  int num_partitions() const { return partitioning_.count(); }

 private:
  // What the partitions do not keep of a batch in the window.
  struct Batch {
    PlainVector<int32_t> inverse;      // (N) as StepPlan has them
    PlainVector<int32_t> group;        // (N)
    PlainVector<int32_t> group_start;  // (U + 1)
    PlainVector<uint8_t> partitions;   // (U) of each unique row
    // Unique rows whose first occurrence lies before a piece, and those of each partition.
    std::vector<int32_t> first_unique;       // (P + 1)
    std::vector<int32_t> partitions_unique;  // (P + 1, S)

    size_t num_pieces() const { return first_unique.size() - 1; }
    size_t num_unique() const { return partitions.size(); }
    size_t bytes() const;
  };
  // What one partition found in the batch that is being pushed.
  struct Found {
    PlainVector<int32_t> inverse;  // (n) of its n occurrences, into its u unique rows
    PlainVector<int32_t> start;    // (u + 1) of each row's occurrences in `grouped_`
    int32_t first_unique = 0;      // its rows stand from here on in `uniques_`
  };
  struct Merge;

  bool is_plain() const { return partitions_.size() == 1; }
  Planner* plain() const { return partitions_[0].get(); }
  size_t num() const { return partitions_.size(); }
  int num_threads_for(size_t num_ids) const;
  void for_partitions(size_t num_ids, const std::function<void(size_t, Planner*)>& fn) const;

  Batch push_locked(const std::vector<Segment>& segments, bool ahead);
  void group(size_t s, bool ahead, Batch* batch);
  int32_t name_unique(size_t p, Batch* batch);
  void merge_inverse(size_t p, Batch* batch);
  void merge_groups(size_t p, int32_t first, Batch* batch);
  void check(int64_t depth) const;
  std::shared_ptr<StepPlan> plan_locked(Batch batch, int64_t depth);
  std::vector<TableCounts> sum(std::vector<TableCounts> (Planner::*of)() const) const;

  const Partitioning partitioning_;
  const int num_threads_;
  const std::vector<std::unique_ptr<Planner>> partitions_;
  mutable std::mutex
      mutex_;  // guards all below, and what the partitions do; not taken by a plain one
  std::deque<Batch> window_;
  DealtIds dealt_;
  // Of the batch that is being pushed.
  std::vector<Found> found_;
  PlainVector<int32_t> grouped_;  // (N) occurrences by partition, row, batch order
  PlainVector<int32_t> uniques_;  // (U) the number of each partition's rows among all
};

}  // namespace te
