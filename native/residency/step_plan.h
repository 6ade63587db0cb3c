// Everything that one batch needs, as plain arrays.
//
// Legend: N occurrences in lookup order (feature after feature), U unique rows in order of first
// occurrence, M rows to stage, V victims, W rows that fall out of the tier below.
#pragma once

#include <cstdint>

#include "core/plain_vector.h"

namespace te {

constexpr int32_t kNoSlot = -1;

struct StepPlan {
  int64_t number = 0;  // the planner's count of plans

  PlainVector<int64_t> keys;     // (U) row ids
  PlainVector<uint16_t> tables;  // (U) index of the row's table in its pool
  PlainVector<int32_t> slots;    // (U)

  PlainVector<int32_t> inverse;      // (N) occurrence -> unique
  PlainVector<int32_t> group_start;  // (U + 1) first occurrence of each unique row in `group`
  PlainVector<int32_t> group;        // (N) occurrences by unique row, in batch order

  PlainVector<int32_t> staged;  // (M) unique indices that were not resident

  PlainVector<int64_t> victim_keys;     // (V)
  PlainVector<uint16_t> victim_tables;  // (V)
  PlainVector<int32_t> victim_slots;    // (V)
  PlainVector<uint8_t> victim_dirty;    // (V) 1: the tier below must get the record

  // With a tier below that holds what loses its slot here (LowerTier); empty without. Its slots
  // count from 0. What `staged_from` names goes up before anything comes down.
  PlainVector<int32_t> staged_from;     // (M) slot that the row leaves; kNoSlot: it is further down
  PlainVector<int32_t> victim_to;       // (V) slot that it gets; kNoSlot: it passes on
  PlainVector<int64_t> fallen_keys;     // (W) rows that lose their slot there
  PlainVector<uint16_t> fallen_tables;  // (W)
  PlainVector<int32_t> fallen_slots;    // (W)
  PlainVector<uint8_t> fallen_dirty;    // (W)

  int64_t overflow = 0;  // rows of this batch that took transient slots beyond the tier
};

}  // namespace te
