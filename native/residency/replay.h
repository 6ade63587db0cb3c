// Feeds a planner as a training run does, and moves no bytes.
//
// Batch t is planned when `lookahead` batches after it are known, or the stream has ended, and is
// released before the next plan. When exactly a run releases a batch changes no decision, so its
// counts are these. Not thread-safe; the planner locks.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "residency/planner.h"
#include "residency/row_table.h"

namespace te {

// One table's ids: batch b is ids[offsets[b], offsets[b + 1]).
struct BatchedIds {
  int32_t table;
  const int64_t* offsets;
  const int64_t* ids;
};

struct ReplayOptions {
  int64_t num_tables = 1;
  int64_t lookahead = 0;
  int64_t depth = 0;
  bool updated = true;  // every batch's rows are changed
  bool per_step = false;
};

class Replay {
 public:
  // lookups, unique, misses, evicted, written back, overflow, cold misses
  static constexpr size_t kColumns = 7;

  // REQUIRES: the planner outlives the replay, and nobody else feeds it.
  Replay(Planner* planner, ReplayOptions options);

  // Appends batches; of each, the tables' ids in the order given. Throws as Planner::plan; once
  // that has happened, this and `finish` throw PlannerFailed: the counts are of half a step.
  void push(const std::vector<BatchedIds>& tables, int64_t num_batches);

  // The stream has ended: plans what is left with the window that it has, up to `num_steps` in all.
  void finish(int64_t num_steps);

  int64_t num_steps() const { return num_steps_; }
  // Misses of rows that were never resident before, per table.
  const std::vector<int64_t>& cold() const { return cold_; }
  // (steps, tables, kColumns) of the steps since the last call; empty unless asked for.
  std::vector<int64_t> take_steps();

 private:
  void plan();
  void note_step(const std::vector<int64_t>& cold_before);

  Planner* planner_;
  const ReplayOptions options_;
  RowTable seen_;
  std::vector<int64_t> cold_;
  std::vector<Segment> segments_;
  std::vector<TableCounts> counts_;  // at the last step
  std::vector<int64_t> steps_;
  int64_t num_steps_ = 0;
  Failure failure_;
};

}  // namespace te
