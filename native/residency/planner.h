// Decides which row is where, for one pool: in the tier that computes and, where there is one, in
// the memory tier that takes its victims. Never looks at a clock.
//
// Batches of ids enter the window by `push`; `plan` turns the oldest one into a StepPlan. A batch
// that `plan_now` brings does not join the window: it gets the next plan, the window's batches come
// one plan later, and nothing else about them changes. Its rows' next use, when its pins drop, is
// their last one in the window.
//
// There are two implementations: SinglePlanner, and PartitionedPlanner, whose partitions are single
// planners that work in parallel. `make_planner` chooses.
//
// A call that throws NoCapacity or TooManyHeld has changed nothing. One that throws anything else
// may have ended halfway: later calls then throw PlannerFailed with its cause. After a failed
// `push` or `cancel` these are `push`, `plan` and `plan_now`; after a failed plan also `find`,
// `dirty_rows` and `mark_clean`. `release`, `cancel` and counts never throw it.
//
// Threading: every method locks. The caller decides in which order `push`, `plan`, `plan_now`,
// `release` and `cancel` come, and so what is planned.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "residency/counts.h"
#include "residency/failure.h"
#include "residency/ids.h"
#include "residency/step_plan.h"

namespace te {

struct TableShape {
  int64_t num_rows;    // -1: any int64 is a row id
  int64_t first_slot;  // >= 0: the whole table lives at [first_slot, first_slot + num_rows)
};

struct PlannerOptions {
  std::vector<TableShape> tables;
  int64_t whole_slots = 0;     // slots of whole tables, [0, whole_slots)
  int64_t cached_slots = 0;    // slots that the other tables share
  int64_t overflow_slots = 0;  // transient slots that follow those
  int64_t lower_slots = 0;     // of the tier below, if it takes what loses its slot here
  std::string policy = "lookahead";
  bool backed = true;  // a store at the bottom takes evicted rows
  // Plans say where each row occurs; else the caller does, by `take_occurrences`.
  bool keeps_occurrences = true;

  int64_t num_upper_slots() const { return whole_slots + cached_slots + overflow_slots; }
};

// The tiers have no room for a batch. `needed` slots are missing.
struct NoCapacity : std::runtime_error {
  NoCapacity(int64_t n, int64_t slots)
      : std::runtime_error("no capacity"), needed(n), num_slots(slots) {}
  int64_t needed;
  int64_t num_slots;
};

// More plans are held than pins can count.
struct TooManyHeld : std::runtime_error {
  explicit TooManyHeld(int64_t n) : std::runtime_error("too many plans are held"), num_plans(n) {}
  int64_t num_plans;
};

struct ResidentRows {
  std::vector<uint16_t> tables;
  std::vector<int64_t> keys;
  std::vector<int32_t> slots;
};

class Planner {
 public:
  virtual ~Planner() = default;

  // Appends a batch to the window. Throws std::invalid_argument, with nothing changed, where it has
  // 2^31 ids or more; so do `plan_now` and `find`. REQUIRES: ids lie inside their tables.
  virtual void push(const std::vector<Segment>& segments) = 0;

  // Plans the oldest batch of the window. Slots used by the last `depth` plans and by plans that
  // are not released yet stay pinned. Throws NoCapacity, with nothing changed, when neither free,
  // evictable nor overflow slots suffice; TooManyHeld alike. REQUIRES: the window is not empty.
  virtual std::shared_ptr<StepPlan> plan(int64_t depth) = 0;

  // Plans a batch alone, at depth 0, ahead of whatever the window holds. Throws as `plan`.
  virtual std::shared_ptr<StepPlan> plan_now(const std::vector<Segment>& segments) = 0;

  // The batch of plan `number` is done; `updated` says that its rows were changed. A batch that no
  // forward used (`used` = false) is taken back out of lookups, unique, misses and overflow of the
  // upper tier; the rows that it moved stay counted.
  virtual void release(int64_t number, bool updated, bool used = true) = 0;

  // Drops every batch of the window that has no plan yet. Does nothing where no plan can follow.
  virtual void cancel() = 0;

  // The slot of each occurrence (N), kNoSlot where its row is not resident. The lower tier's slots
  // follow this one's, from `first_lower_slot` on. REQUIRES: ids lie inside their tables.
  virtual void find(const std::vector<Segment>& segments, int32_t* slots, int num_threads) = 0;

  // Whether the row of every occurrence has been used and is in a slot that is its own for good, as
  // rows of whole tables are. REQUIRES: ids lie inside their tables.
  virtual bool holds_for_good(const std::vector<Segment>& segments, int num_threads) = 0;

  // Rows that the store does not hold as they are here, updates of released plans included; slots
  // as in `find`.
  virtual ResidentRows dirty_rows() = 0;
  // They have been written back.
  virtual void mark_clean() = 0;

  // A plan that was made is lost: from now on the planner is as after a failed plan.
  virtual void fail(const char* cause) = 0;

  // Of the upper tier. With `used`, as if every plan that awaits its release and is not among them
  // had been released unused.
  virtual std::vector<TableCounts> counts(
      const std::optional<std::vector<int64_t>>& used) const = 0;
  virtual std::vector<TableCounts> lower_counts() const = 0;  // empty without a lower tier
  virtual int64_t num_lower_resident() const = 0;
  virtual int64_t window_size() const = 0;
  virtual int64_t num_resident() const = 0;
  // Every row of the pool is in its slot for good: no plan stages or evicts.
  virtual bool all_resident() const = 0;
  virtual int64_t overhead_bytes() const = 0;
  virtual int64_t first_lower_slot() const = 0;
  virtual int num_partitions() const = 0;
};

// One partition: a SinglePlanner. Several must be a power of two, and need a store at the bottom
// and at least one slot each in every tier; 65536 tables and 2^31 - 1 slots are the most; else
// std::invalid_argument. The number of partitions decides which rows are evicted, the number of
// threads does not.
std::unique_ptr<Planner> make_planner(const PlannerOptions& options, int num_partitions,
                                      int num_threads);

}  // namespace te
