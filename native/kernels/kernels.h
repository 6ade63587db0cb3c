// Lookup and fused update over the slots of a RecordArray, grouped by a step plan.
//
// Results are the same bits for every instruction set and every number of threads. Legend: N
// occurrences, U unique rows, B bags per feature, F features, D dim.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/weight_type.h"

// The copies of the kernels for each instruction set must not leave an out-of-line function that
// the linker could pick for the whole program.
#define TE_ALWAYS_INLINE inline __attribute__((always_inline))

namespace te {

constexpr float kNoClip = std::numeric_limits<float>::infinity();

enum class Pooling : uint8_t { kSum = 0, kMean = 1, kMax = 2 };

// The step: which slot every occurrence reads, and how occurrences make bags.
struct Bags {
  const int32_t* slots;         // (U)
  const int32_t* inverse;       // (N)
  const int64_t* offsets;       // (F * B + 1) from 0 to N, or nullptr: one bag per occurrence
  const float* sample_weights;  // (N), or nullptr
  int64_t num_ids;              // N
  int64_t num_features;         // F
  int64_t bags_per_feature;     // B
  const Pooling* pooling;       // (F)
  const int64_t* columns;       // (F) first column of each feature in a row of `out` / `grad`
  int64_t row_stride;           // floats from one row of `out` / `grad` to the next
  int32_t* winners;             // (F * B, D) occurrence that gave a maximum, -1 in empty bags; or
                                // nullptr where no feature takes one or no backward follows
  const uint8_t* const* rows;  // address of the weights of each occurrence from `first_row` on, for
                               // a lookup that no update follows; or nullptr: `slots` and
                               // `inverse` say it
  int64_t first_row;
};

struct Records {
  uint8_t* weights;  // (slots, D) of `type`
  float* state;      // (slots, S)
  int64_t dim;
  int64_t state_floats;
  WeightType type;

  TE_ALWAYS_INLINE uint8_t* row(int64_t slot) const {
    return weights + slot * dim * weight_bytes(type);
  }
  TE_ALWAYS_INLINE float* row_state(int64_t slot) const { return state + slot * state_floats; }
};

struct Groups {
  const int32_t* start;  // (U + 1), from 0 to N
  const int32_t* group;  // (N)
  int64_t num_unique;
};

// Every optimizer's functor in optimizers.inc; its place here is its number.
#define TE_OPTIMIZERS(X) \
  X(SGD)                 \
  X(MomentumSGD)         \
  X(RowWiseAdagrad)      \
  X(Adagrad)             \
  X(RowWiseRMSProp)      \
  X(Adam)                \
  X(PartialRowWiseAdam)  \
  X(LAMB)                \
  X(PartialRowWiseLAMB)  \
  X(LARSSGD)             \
  X(FTRL)

enum class OptimizerKind : int {
#define TE_KIND(name) k##name,
  TE_OPTIMIZERS(TE_KIND)
#undef TE_KIND
      kCount
};

const std::vector<std::string>& optimizer_names();

// Stochastic rounding's randomness: Philox keyed by seed and step, counted by table and row.
struct Rounding {
  uint64_t key;
  const uint32_t* table_words;  // per table of the pool
  const uint16_t* tables;       // (U)
  const int64_t* rows;          // (U)
};

// What an update does to a row's gradient g and its weights w before the optimizer's formula, in
// this order; the defaults do nothing.
struct Conditioning {
  bool by_frequency = false;  // g /= occurrences of the row
  float scale = 1.0f;         // g *= scale
  float clip_value = kNoClip;
  float clip_row_norm = kNoClip;
  float keep = 1.0f;  // w *= keep, decoupled weight decay
  float l2 = 0.0f;    // g += l2 * w

  TE_ALWAYS_INLINE bool of_gradient() const {
    return by_frequency || scale != 1.0f || clip_value != kNoClip || clip_row_norm != kNoClip;
  }
};

struct Step {
  OptimizerKind kind;
  float v[12];  // as listed by the optimizer's `hyper` in optim/
  Conditioning conditioning;
  const Rounding* rounding;  // nullptr: to nearest
};

// REQUIRES, of all that follows: arrays have the shapes that the structs above name, and slots lie
// inside the records.

// out[b, columns[f] : columns[f] + D] = pooled rows of bag (f, b); empty bags give zeros.
void lookup(const Records& records, const Bags& bags, float* out, int num_threads);

// Where the rows of a lookup lie that no plan has staged: in one of two tiers, or in scratch.
struct Places {
  const int32_t* slots;    // (N) [0, first_lower_slot): upper; from there on: lower;
                           // -1 - m: record m of scratch
  const Records* upper;    // not int8, whose scale and bias lie apart
  const Records* lower;    // nullptr: there is none
  const uint8_t* scratch;  // (M, record_bytes)
  int64_t record_bytes;
  int64_t first_lower_slot;
};

// As `lookup`; `bags.slots` and `bags.inverse` are not used.
void lookup_in_place(const Places& places, const Bags& bags, float* out, int num_threads);

// A run of occurrences of a table whose row `id` is in slot `first_slot + id`.
struct WholeRun {
  const int64_t* ids;
  int64_t num_ids;
  int64_t first_slot;
};

// As `lookup_in_place`, where every occurrence is of such a table; `runs` are in lookup order.
void lookup_whole(const Records& records, const std::vector<WholeRun>& runs, const Bags& bags,
                  float* out, int num_threads);

// One optimizer step per unique row with its full gradient; `grad` is shaped like `out`.
// REQUIRES, here and in `row_gradients`: `winners` is given where a feature takes a maximum.
void update(const Records& records, const Bags& bags, const Groups& groups, const float* grad,
            const Step& step, int num_threads);

// The two halves of `update`, for callers that need every gradient first. `rows` is (U, D).
void row_gradients(const Bags& bags, const Groups& groups, const float* grad, int64_t dim,
                   float* rows, int num_threads);
void apply_rows(const Records& records, const Bags& bags, const Groups& groups, float* rows,
                const Step& step, int num_threads);

// Conditions `rows` (U, D) in place and returns the sum of squares, row after row in float64.
double condition_rows(const Groups& groups, int64_t dim, const Conditioning& conditioning,
                      float* rows, int num_threads);

// Adds rows (n, dim) to the rows `where` (n) of total. REQUIRES: no two go to the same one.
void add_rows(const float* rows, const int64_t* where, int64_t n, int64_t dim, float* total,
              int num_threads);

// sample_grad[i] = dot(gradient of occurrence i's bag, its row).
void sample_weight_gradient(const Records& records, const Bags& bags, const float* grad,
                            float* sample_grad, int num_threads);

// Rows whose p-norm exceeds max_norm are scaled down to it.
void renormalise(const Records& records, const int32_t* slots, int64_t num_unique, float max_norm,
                 double p, int num_threads);

// The largest magnitude of x (n); infinity when a value is infinite or NaN.
float largest_magnitude(const float* x, int64_t n, int num_threads);

// The instruction sets that this machine can run, best first, and the one in use.
std::vector<std::string> available_isas();
std::string current_isa();
// Throws std::invalid_argument for one that is not available.
void select_isa(const std::string& name);

}  // namespace te
