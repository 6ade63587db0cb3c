// Merges the plans that the partitions of a planner made of one batch.
//
// The result is a plan like any other: unique rows in the order of first occurrence, occurrences in
// batch order. Only slots and victims show that there are partitions. Victims stand partition by
// partition.
//
// Legend: U unique rows, S partitions, P pieces of the batch (DealtIds).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "residency/batch_merger.h"
#include "residency/partitioning.h"
#include "residency/step_plan.h"

namespace te {

class PlanMerger {
 public:
  // REQUIRES: all arguments outlive it.
  PlanMerger(const Partitioning* partitioning, const MergedBatch* batch);

  // The plan of partition `s`. From several threads at once, for different partitions.
  void add(size_t s, std::shared_ptr<StepPlan> part);

  // Everything but the occurrences, which stay in the batch. REQUIRES: all partitions were added.
  std::shared_ptr<StepPlan> merge(int num_threads);

 private:
  size_t num() const { return parts_.size(); }
  void make_room();
  void merge_unique(size_t p);
  void merge_evicted(size_t s);

  const Partitioning& partitioning_;
  const MergedBatch& batch_;
  const bool has_lower_;
  const std::shared_ptr<StepPlan> plan_;
  std::vector<std::shared_ptr<StepPlan>> parts_;
  std::vector<int32_t> staged_before_;  // (P + 1, S) of each partition, before a piece's rows
  std::vector<size_t> first_staged_;    // (P + 1)
  std::vector<size_t> first_victim_;    // (S + 1)
  std::vector<size_t> first_fallen_;    // (S + 1)
};

}  // namespace te
