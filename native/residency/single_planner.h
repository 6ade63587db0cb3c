// The planner of a pool, or of one partition of it: the rule that turns a batch into a plan.
//
// Its parts: Window (future batches), UpperTier with LowerTier (slots and victims), WholeTables,
// and HeldPlans (pins).
//
// Threading: as Planner's.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/plain_vector.h"
#include "residency/batch.h"
#include "residency/held_plans.h"
#include "residency/planner.h"
#include "residency/row_table.h"
#include "residency/upper_tier.h"
#include "residency/whole_tables.h"
#include "residency/window.h"

namespace te {

class SinglePlanner final : public Planner {
 public:
  explicit SinglePlanner(const PlannerOptions& options);

  void push(const std::vector<Segment>& segments) override;
  std::shared_ptr<StepPlan> plan(int64_t depth) override;
  std::shared_ptr<StepPlan> plan_now(const std::vector<Segment>& segments) override;
  void release(int64_t number, bool updated, bool used = true) override;
  void cancel() override;
  void find(const std::vector<Segment>& segments, int32_t* slots, int num_threads) override;
  bool holds_for_good(const std::vector<Segment>& segments, int num_threads) override;
  ResidentRows dirty_rows() override;
  void mark_clean() override;
  void fail(const char* cause) override;

  std::vector<TableCounts> counts(const std::optional<std::vector<int64_t>>& used) const override;
  std::vector<TableCounts> lower_counts() const override;
  int64_t num_lower_resident() const override;
  int64_t window_size() const override;
  int64_t num_resident() const override;
  bool all_resident() const override;
  int64_t overhead_bytes() const override;
  int64_t first_lower_slot() const override { return options_.num_upper_slots(); }
  int num_partitions() const override { return 1; }

  // --- for a PartitionedPlanner, which asks all its partitions before one of them changes
  // ---------

  // `plan_now` in parts. The batch is aside, outside the window, until it is planned or dropped;
  // nothing else may be pushed, planned or cancelled meanwhile.
  void push_aside(const std::vector<Segment>& segments);
  std::shared_ptr<StepPlan> plan_aside();
  void drop_aside();

  // Of the batch aside, if there is one, or else of the one pushed last: moves out, for every
  // occurrence, the index into its unique rows; returns their number.
  int32_t take_occurrences(PlainVector<int32_t>* inverse);

  // Whether planning the batch aside, if there is one, or else the window's oldest one, would
  // throw, and with which number; 0: it would not. Changes nothing.
  int64_t num_missing(int64_t depth) const;  // NoCapacity
  int64_t num_held(int64_t depth) const;     // TooManyHeld

 private:
  void reserve_positions(const std::vector<Segment>& segments);
  void push_aside_locked(const std::vector<Segment>& segments);
  void drop_aside_locked();
  std::shared_ptr<StepPlan> plan_aside_locked();
  void require_room(const Batch& batch, int64_t depth) const;
  int64_t num_held_locked(int64_t depth) const;
  int64_t shortage(const Batch& batch, int64_t depth) const;

  std::shared_ptr<StepPlan> plan_batch(Batch batch, int64_t depth);
  void pin_resident(const Batch& batch, StepPlan* plan);
  void stage(Batch* batch, StepPlan* plan);
  void name_rows(const Batch& batch, StepPlan* plan);
  void count(const StepPlan& plan, Batch* batch);
  void find_whole(const Segment& segment, int32_t* slots) const;
  void find_cached(const Segment& segment, int32_t* slots) const;

  const PlannerOptions options_;
  mutable std::mutex mutex_;  // guards all below
  RowTable rows_;
  WholeTables whole_;
  UpperTier upper_;
  Window window_;
  HeldPlans held_;
  std::optional<Batch> aside_;
  Failure failure_;
};

}  // namespace te
