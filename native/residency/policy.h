// Which evictable row goes first. One small file per policy; the planner drives it.
//
// A row is handed over (`insert`) when its last pin drops and taken back (`remove`) when a batch
// pins it again. Between the two it may be chosen by `evict`. Decisions depend on the calls alone,
// never on time. Not thread-safe: the planner holds its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "residency/row_table.h"

namespace te {

constexpr int64_t kNever = INT64_MAX;  // no use inside the window

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // `row` became evictable; the plan number `next_use` will need it, or kNever.
  // REQUIRES: row is not listed.
  virtual void insert(RowHandle row, int64_t next_use) = 0;

  // `row` was pinned. REQUIRES: row is listed.
  virtual void remove(RowHandle row) = 0;

  // A listed row's next use became known, or (kNever) was taken back.
  virtual void reschedule(RowHandle row, int64_t next_use) = 0;

  // Chooses a row, unlists and returns it; kNoRow when none is listed.
  virtual RowHandle evict() = 0;

  // Plan `plan` is being made: no listed row has its next use at or before it any more.
  virtual void advance(int64_t plan) = 0;
};

std::unique_ptr<EvictionPolicy> make_lru(RowTable* rows);

// Rows used inside the window stay, farthest next use out first; the rest follow `base`.
std::unique_ptr<EvictionPolicy> make_lookahead(RowTable* rows,
                                               std::unique_ptr<EvictionPolicy> base);

}  // namespace te
