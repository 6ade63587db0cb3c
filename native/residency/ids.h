// Ids as a batch brings them, and what is checked about them before anything is planned.
#pragma once

#include <cstdint>
#include <vector>

#include "residency/step_plan.h"

namespace te {

// A run of ids of one table, in lookup order. Belongs to the caller.
struct Segment {
  int32_t table;
  const int64_t* ids;
  int64_t num_ids;
};

inline int64_t num_ids_of(const std::vector<Segment>& segments) {
  int64_t n = 0;
  for (const Segment& s : segments) n += s.num_ids;
  return n;
}

// Throws std::invalid_argument where a batch has more ids than 32 bits count.
void require_countable(const std::vector<Segment>& segments);

// First index whose id lies outside [0, num_rows), or -1. num_rows < 0: every id is inside.
int64_t first_bad_id(const int64_t* ids, int64_t n, int64_t num_rows, int num_threads = 1);

// Whether n bounds make bags of num_ids ids: from 0 to num_ids, none below the one before.
bool are_bag_bounds(const int64_t* bounds, int64_t n, int64_t num_ids);

// Rows that some occurrences name, each once, in order of first occurrence.
struct Rows {
  std::vector<uint16_t> tables;
  std::vector<int64_t> keys;
};

// The rows of the occurrences whose slot (N) is kNoSlot. In place of kNoSlot such an occurrence
// gets -1 - m where its row is the m-th of them.
Rows name_missing(const std::vector<Segment>& segments, int32_t* slots);

// Whether the plan's occurrences are exactly these ids, in order.
bool plan_matches(const StepPlan& plan, const std::vector<Segment>& segments);

}  // namespace te
