// The records of one pool in host memory: weights (slots, dim) and state (slots, state_floats).
//
// Kept as two arrays so that every row of weights starts on a cache line of its own. A record on
// the move is weights followed by state, `record_bytes()` bytes.
//
// Threading: calls may run at once when they name different slots; the planner's pins see to that.
#pragma once

#include <cstdint>

#include "core/virtual_array.h"

namespace te {

struct UniformInit {
  uint64_t seed;
  float lo;
  float scale;  // hi - lo, in float32
};

class RecordArray {
 public:
  // REQUIRES: dim > 0, state_floats >= 0, num_slots > 0.
  RecordArray(int64_t num_slots, int64_t dim, int64_t state_floats);

  int64_t num_slots() const { return num_slots_; }
  int64_t dim() const { return dim_; }
  int64_t state_floats() const { return state_floats_; }
  int64_t record_bytes() const { return (dim_ + state_floats_) * 4; }
  float* weights() { return weights_.data(); }
  float* state() { return state_.data(); }

  // Copies the records in `slots` (n) to `records` (n, record_bytes).
  void gather(const int32_t* slots, int64_t n, uint8_t* records, int num_threads) const;

  // Copies records[i] into slots[i] where keep[i]; keep == nullptr means all.
  void scatter(const int32_t* slots, int64_t n, const uint8_t* records, const bool* keep,
               int num_threads);

  // Gives slots[i] the initial value of row rows[i] of table tables[i] where !skip[i]: weights by
  // Philox, state zero. `tables` holds the tables' 32-bit identities.
  void initialise(const int32_t* slots, int64_t n, const uint32_t* tables, const int64_t* rows,
                  const bool* skip, const UniformInit& init, int num_threads);

 private:
  const int64_t num_slots_;
  const int64_t dim_;
  const int64_t state_floats_;
  VirtualArray<float> weights_;
  VirtualArray<float> state_;
};

// One row's initial weights, (dim) floats.
void initial_weights(const UniformInit& init, uint32_t table, int64_t row, int64_t dim, float* out);

}  // namespace te
