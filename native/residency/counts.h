// What planners count, per table of their pool.
#pragma once

#include <cstdint>

namespace te {

// What one plan adds to the upper tier's counts, and takes back where no forward ever used it. Rows
// that it moved stay moved, so staged and evicted ones are not among these.
struct UseCounts {
  int64_t lookups = 0;
  int64_t unique = 0;
  int64_t misses = 0;
  int64_t overflow = 0;
};

// Of one tier, since the planner was made.
struct TableCounts {
  int64_t lookups = 0;
  int64_t unique = 0;
  int64_t misses = 0;
  int64_t staged = 0;
  int64_t evicted = 0;
  int64_t written_back = 0;
  int64_t overflow = 0;

  void add(const TableCounts& other) {
    lookups += other.lookups;
    unique += other.unique;
    misses += other.misses;
    staged += other.staged;
    evicted += other.evicted;
    written_back += other.written_back;
    overflow += other.overflow;
  }
  void add(const UseCounts& uses) {
    lookups += uses.lookups;
    unique += uses.unique;
    misses += uses.misses;
    overflow += uses.overflow;
  }
  void take_back(const UseCounts& uses) {
    lookups -= uses.lookups;
    unique -= uses.unique;
    misses -= uses.misses;
    overflow -= uses.overflow;
  }
};

}  // namespace te
