// A small training task and its truth: the batches, one step of lookup and update by the kernels,
// and a dense model that takes the same steps on one thread with every row in place.
//
// Legend as in kernels.h; every table has one feature.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "core/record_array.h"
#include "kernels/kernels.h"
#include "residency/single_planner.h"
#include "tests/stress.h"

namespace te::stress {

using Key = std::pair<uint16_t, int64_t>;  // table, row id

struct Task {
  std::vector<TableShape> tables;
  std::vector<uint32_t> table_words;  // per table, for initial values
  std::vector<Pooling> pooling;       // per table
  int64_t dim;
  WeightType type;
  OptimizerKind optimizer;
  int64_t state_floats;
  UniformInit init;
  int64_t max_ids;  // per batch
};

struct Batch {
  std::vector<std::vector<int64_t>> ids;  // per table
  std::vector<int64_t> offsets;           // (F * B + 1)
  int64_t num_bags = 0;                   // B
  int64_t num_ids = 0;                    // N
  bool updates = false;                   // else it is only looked up
  bool ahead = false;                     // staged at once, no part of the stream
  bool evaluates = false;                 // read where its rows are, without a plan

  std::vector<Segment> segments() const;
};

// Which slot every occurrence of a batch reads, from a plan or from the dense model.
struct Occurrences {
  PlainVector<int32_t> slots;        // (U)
  PlainVector<int32_t> inverse;      // (N)
  PlainVector<int32_t> group_start;  // (U + 1)
  PlainVector<int32_t> group;        // (N)
};

constexpr int64_t kRowsPerTable = 3000;
constexpr int64_t kWholeRows = 500;

// `whole`: its last table has a slot for every row.
Task task_of(Random* random, bool whole);
Batch batch_of(const Task& task, bool evaluates, Random* random);

// Lookup, and where the batch updates one optimizer step with a gradient that depends on what was
// looked up. Returns the looked up values (B, F * D).
std::vector<float> train(const Task& task, const Batch& batch, int64_t step_number,
                         const Occurrences& occurrences, RecordArray* records, int num_threads);

// As `train` for a batch that updates nothing, of rows that lie in `places`.
std::vector<float> look_up_in_place(const Task& task, const Batch& batch, const Places& places,
                                    int num_threads);

// As the kernels take them.
Records rows_of(RecordArray* records);

struct Truth {
  std::vector<std::vector<float>> looked_up;         // per batch
  std::map<Key, std::vector<uint8_t>> updated_rows;  // their records at the end
};
Truth train_densely(const Task& task, const std::vector<Batch>& batches);

}  // namespace te::stress
