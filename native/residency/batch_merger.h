// Pushes a batch to every partition of a planner, and merges what they found into one batch.
//
// The batch's ids are dealt to the partitions, every partition deduplicates its own, and the unique
// rows get numbers in the order of first occurrence among all, as a single planner would give them.
//
// Legend: N occurrences, U unique rows, S partitions, P pieces of the batch (DealtIds). All arrays
// but the result's are reused by the next batch. Not thread-safe: the planner holds its lock.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/plain_vector.h"
#include "residency/dealt_ids.h"
#include "residency/ids.h"
#include "residency/partitioning.h"

namespace te {

// What the partitions do not keep of a batch.
struct MergedBatch {
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

class BatchMerger {
 public:
  // Pushes the segments to partition `s`; gives the index into its unique rows of each of their
  // occurrences, and returns how many unique rows there are. Called from several threads at once.
  using Push = std::function<int32_t(size_t s, const std::vector<Segment>& segments,
                                     PlainVector<int32_t>* inverse)>;

  explicit BatchMerger(const Partitioning* partitioning)
      : num_(static_cast<size_t>(partitioning->count())), dealt_(partitioning), found_(num_) {}

  // REQUIRES: ids lie inside their tables.
  MergedBatch push(const std::vector<Segment>& segments, int num_threads, const Push& push);

  size_t bytes() const;

 private:
  // What one partition found.
  struct Found {
    PlainVector<int32_t> inverse;  // (n) of its n occurrences, into its u unique rows
    PlainVector<int32_t> start;    // (u + 1) of each row's occurrences in `grouped_`
    int32_t first_unique = 0;      // its rows stand from here on in `uniques_`
  };

  void group(size_t s, int32_t num_unique, MergedBatch* batch);
  int32_t name_unique(size_t p, MergedBatch* batch);
  void merge_inverse(size_t p, MergedBatch* batch);
  void merge_groups(size_t p, int32_t first, MergedBatch* batch);

  const size_t num_;  // S
  DealtIds dealt_;
  std::vector<Found> found_;
  PlainVector<int32_t> grouped_;  // (N) occurrences by partition, row, batch order
  PlainVector<int32_t> uniques_;  // (U) the number of each partition's rows among all
};

}  // namespace te
