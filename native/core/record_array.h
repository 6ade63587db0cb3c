// The records of one pool in host memory: weights (slots, dim) and state (slots, state_floats).
//
// Kept as two arrays so that every row of weights starts on a cache line of its own. A record on
// the move is weights followed by state, `record_bytes()` bytes. Int8 rows keep their scale and
// bias as two floats of state.
//
// Threading: calls may run at once when they name different slots; the planner's pins see to that.
#pragma once

#include <cstdint>

#include "core/check.h"
#include "core/virtual_array.h"
#include "core/weight_type.h"

namespace te {

struct UniformInit {
  uint64_t seed;
  float lo;
  float scale;  // hi - lo, in float32
};

class RecordArray {
 public:
  // REQUIRES: dim > 0, state_floats >= 0 (2 for int8), num_slots > 0.
  RecordArray(int64_t num_slots, int64_t dim, WeightType type, int64_t state_floats);

  int64_t num_slots() const { return num_slots_; }
  int64_t dim() const { return dim_; }
  int64_t state_floats() const { return state_floats_; }
  WeightType type() const { return type_; }
  int64_t row_bytes() const { return dim_ * weight_bytes(type_); }
  int64_t record_bytes() const { return row_bytes() + state_floats_ * 4; }
  uint8_t* weights() { return weights_.data(); }
  float* state() { return state_.data(); }

  // Copies the records in `slots` (n) to `records` (n, record_bytes). REQUIRES, here and below:
  // every slot is one of num_slots().
  void gather(const int32_t* slots, int64_t n, uint8_t* records, int num_threads) const;

  // Copies records[i] into slots[i] where keep[i]; keep == nullptr means all.
  void scatter(const int32_t* slots, int64_t n, const uint8_t* records, const bool* keep,
               int num_threads);

  // Gives slots[i] the initial value of row rows[i] of table tables[i] where !skip[i]: weights by
  // Philox rounded to nearest, state zero. `tables` holds the tables' 32-bit identities.
  void initialise(const int32_t* slots, int64_t n, const uint32_t* tables, const int64_t* rows,
                  const bool* skip, const UniformInit& init, int num_threads);

 private:
  void require_slot(int32_t slot) const {
    TE_CHECK(slot >= 0 && slot < num_slots_, "the slot exists");
  }

  const int64_t num_slots_;
  const int64_t dim_;
  const WeightType type_;
  const int64_t state_floats_;
  VirtualArray<uint8_t> weights_;
  VirtualArray<float> state_;
};

// One row's initial weights before rounding, (dim) floats. REQUIRES: StandardFloats.
void initial_weights(const UniformInit& init, uint32_t table, int64_t row, int64_t dim, float* out);

}  // namespace te
