// Lookup and fused update over the slots of a RecordArray, grouped by a step plan.
//
// Arithmetic is fixed by DESIGN.md, "Exact arithmetic": results are the same bits for every
// instruction set and every number of threads. Legend: N occurrences, U unique rows, B bags per
// feature, F features, D dim.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace te {

// The step: which slot every occurrence reads, and how occurrences make bags.
struct Bags {
  const int32_t* slots;         // (U)
  const int32_t* inverse;       // (N)
  const int64_t* offsets;       // (F * B + 1), or nullptr: one bag per occurrence
  const float* sample_weights;  // (N), or nullptr
  int64_t num_ids;              // N
  int64_t num_features;         // F
  int64_t bags_per_feature;     // B
  const uint8_t* mean;          // (F) 1: divide by the bag's length
  const int64_t* columns;       // (F) first column of each feature in a row of `out` / `grad`
  int64_t row_stride;           // floats from one row of `out` / `grad` to the next
};

struct Records {
  float* weights;  // (slots, D)
  float* state;    // (slots, S)
  int64_t dim;
  int64_t state_floats;
};

struct Groups {
  const int32_t* start;  // (U + 1)
  const int32_t* group;  // (N)
  int64_t num_unique;
};

enum class OptimizerKind : int { kSgd = 0, kRowWiseAdagrad = 1, kAdagrad = 2, kAdam = 3 };

struct Hyper {
  OptimizerKind kind;
  float v[8];  // as listed by the optimizer's `hyper` in optim.py
};

// out[b, columns[f] : columns[f] + D] = pooled rows of bag (f, b); empty bags give zeros.
void lookup(const Records& records, const Bags& bags, float* out, int num_threads);

// One optimizer step per unique row with its full gradient; `grad` is shaped like `out`.
void update(const Records& records, const Bags& bags, const Groups& groups, const float* grad,
            const Hyper& hyper, int num_threads);

// sample_grad[i] = dot(gradient of occurrence i's bag, its row).
void sample_weight_gradient(const Records& records, const Bags& bags, const float* grad,
                            float* sample_grad, int num_threads);

// The instruction sets that this machine can run, best first, and the one in use.
std::vector<std::string> available_isas();
std::string current_isa();
// Throws std::invalid_argument for one that is not available.
void select_isa(const std::string& name);

}  // namespace te
