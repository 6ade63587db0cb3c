#include "residency/single_planner.h"

#include <stdexcept>
#include <utility>

namespace te {
namespace {

// Groups occurrences by row: a counting sort, stable, so that batch order holds within a row.
void group_by_row(const PlainVector<int32_t>& inverse, StepPlan* plan) {
  const size_t num_unique = plan->keys.size();
  // Counts at u + 2 become starts at u + 1, and those the cursors that end as the next row's start.
  plan->group_start.assign(num_unique + 2, 0);
  int32_t* start = plan->group_start.data();
  for (int32_t u : inverse) ++start[u + 2];
  for (size_t u = 2; u < num_unique + 2; ++u) start[u] += start[u - 1];
  plan->group.resize(inverse.size());
  for (size_t i = 0; i < inverse.size(); ++i) {
    plan->group[start[inverse[i] + 1]++] = static_cast<int32_t>(i);
  }
  plan->group_start.pop_back();
}

}  // namespace

SinglePlanner::SinglePlanner(const PlannerOptions& options)
    : options_(options),
      rows_(static_cast<size_t>(options.cached_slots + options.lower_slots)),
      whole_(options),
      upper_(&rows_, options),
      window_(&rows_, &upper_, options),
      held_(&rows_, &upper_, &whole_) {}

// --- batches come ---------------------------------------------------------------------------

void SinglePlanner::push(const std::vector<Segment>& segments) {
  require_countable(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_all();
  TE_CHECK(!aside_, "no batch is aside");
  reserve_positions(segments);
  failure_.guard(Failure::Left::kRows, [&] { window_.push(segments); });
}

void SinglePlanner::reserve_positions(const std::vector<Segment>& segments) {
  const int64_t n = num_ids_of(segments);
  if (window_.reserve(n, held_.oldest_position())) return;
  held_.renumber(window_.renumber(held_.oldest_position()));
  if (window_.reserve(n, held_.oldest_position())) return;
  throw std::overflow_error("push: the window holds more rows than positions can count");
}

void SinglePlanner::cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.any()) return;
  TE_CHECK(!aside_, "no batch is aside");
  failure_.guard(Failure::Left::kRows, [&] {
    const uint32_t first_cancelled = window_.base();
    window_.cancel();
    held_.restore(&window_, first_cancelled);
  });
}

void SinglePlanner::push_aside(const std::vector<Segment>& segments) {
  std::lock_guard<std::mutex> lock(mutex_);
  push_aside_locked(segments);
}

void SinglePlanner::push_aside_locked(const std::vector<Segment>& segments) {
  failure_.require_all();
  TE_CHECK(!aside_, "no batch is aside");
  reserve_positions(segments);
  failure_.guard(Failure::Left::kRows, [&] { aside_ = window_.push_aside(segments); });
}

void SinglePlanner::drop_aside() {
  std::lock_guard<std::mutex> lock(mutex_);
  drop_aside_locked();
}

void SinglePlanner::drop_aside_locked() {
  TE_CHECK(aside_, "a batch is aside");
  failure_.guard(Failure::Left::kRows, [&] { window_.drop(&*aside_); });
  aside_.reset();
}

int32_t SinglePlanner::take_occurrences(PlainVector<int32_t>* inverse) {
  std::lock_guard<std::mutex> lock(mutex_);
  Batch* batch = aside_ ? &*aside_ : window_.newest();
  *inverse = std::move(batch->inverse);
  return batch->num_unique;
}

// --- plans are made -------------------------------------------------------------------------

std::shared_ptr<StepPlan> SinglePlanner::plan(int64_t depth) {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_all();
  TE_CHECK(!aside_, "no batch is aside");
  if (window_.size() == 0) throw std::logic_error("plan: the window is empty");
  require_room(window_.oldest(), depth);
  return failure_.guard(Failure::Left::kNothing,
                        [&] { return plan_batch(window_.take_oldest(), depth); });
}

std::shared_ptr<StepPlan> SinglePlanner::plan_now(const std::vector<Segment>& segments) {
  require_countable(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  push_aside_locked(segments);
  try {
    require_room(*aside_, 0);
  } catch (...) {
    drop_aside_locked();
    throw;
  }
  return plan_aside_locked();
}

std::shared_ptr<StepPlan> SinglePlanner::plan_aside() {
  std::lock_guard<std::mutex> lock(mutex_);
  return plan_aside_locked();
}

std::shared_ptr<StepPlan> SinglePlanner::plan_aside_locked() {
  TE_CHECK(aside_, "a batch is aside");
  return failure_.guard(Failure::Left::kNothing, [&] {
    Batch batch = std::move(*aside_);
    aside_.reset();
    window_.adopt(&batch);
    upper_.postpone();
    return plan_batch(std::move(batch), 0);
  });
}

// The rule. The batch has left the window, which says the plan's number. REQUIRES: there is room.
std::shared_ptr<StepPlan> SinglePlanner::plan_batch(Batch batch, int64_t depth) {
  auto plan = std::make_shared<StepPlan>();
  plan->number = window_.next_plan() - 1;
  // Pin what is resident first, so that no row of this batch passes through the policy.
  pin_resident(batch, plan.get());
  held_.drop_pins(plan->number - depth, window_);
  upper_.advance(plan->number);
  upper_.evict_leaving(window_.base(), plan.get());
  stage(&batch, plan.get());
  upper_.finish_plan(window_.base(), plan.get());
  name_rows(batch, plan.get());
  count(*plan, &batch);

  if (options_.keeps_occurrences) {
    group_by_row(batch.inverse, plan.get());
    plan->inverse = std::move(batch.inverse);
  }
  plan->tables = std::move(batch.tables);
  plan->tables.resize(plan->keys.size(), 0);  // of a pool of one table: all zero
  held_.add(plan->number, std::move(batch));
  return plan;
}

// Pins the batch's rows that have a slot in the upper tier; the plan stages the others.
void SinglePlanner::pin_resident(const Batch& batch, StepPlan* plan) {
  const bool whole_resident = whole_.all_resident();
  if (whole_resident && whole_.is_everything()) return;
  for (size_t u = 0; u < batch.handles.size(); ++u) {
    const RowHandle r = batch.handles[u];
    prefetch_row(rows_, batch.handles, u);
    if (is_whole(r)) {
      if (whole_resident) continue;
      prefetch_flag(whole_, batch.handles, u);
      if (whole_.is_resident(whole_slot(r))) continue;
    } else if (Row& row = rows_[r]; upper_.holds(row)) {
      upper_.pin(r, row);
      continue;
    }
    plan->staged.push_back(static_cast<int32_t>(u));
  }
}

// Gives every missing row a slot.
void SinglePlanner::stage(Batch* batch, StepPlan* plan) {
  const uint32_t window_base = window_.base();
  LowerTier* lower = upper_.lower();
  for (int32_t u : plan->staged) {
    const RowHandle r = batch->handles[static_cast<size_t>(u)];
    if (is_whole(r)) {
      whole_.set_resident(whole_slot(r));
      if (lower) plan->staged_from.push_back(kNoSlot);
      continue;
    }
    if (lower) plan->staged_from.push_back(lower->holds(rows_[r]) ? lower->give(r) : kNoSlot);
    if (!upper_.place(r, window_base, plan)) continue;
    ++plan->overflow;
    ++batch->uses[batch->table(static_cast<size_t>(u))].overflow;
  }
}

// Keys and slots of the batch's rows, which all have one.
void SinglePlanner::name_rows(const Batch& batch, StepPlan* plan) {
  const size_t num_unique = batch.handles.size();
  plan->keys.resize(num_unique);
  plan->slots.resize(num_unique);
  if (whole_.is_everything() && batch.tables.empty()) {
    const int64_t first = options_.tables[0].first_slot;
    for (size_t u = 0; u < num_unique; ++u) {
      const int32_t slot = static_cast<int32_t>(whole_slot(batch.handles[u]));
      plan->slots[u] = slot;
      plan->keys[u] = slot - first;
    }
    return;
  }
  for (size_t u = 0; u < num_unique; ++u) {
    const RowHandle r = batch.handles[u];
    prefetch_row(rows_, batch.handles, u);
    if (is_whole(r)) {
      plan->keys[u] = whole_slot(r) - options_.tables[batch.table(u)].first_slot;
      plan->slots[u] = static_cast<int32_t>(whole_slot(r));
    } else {
      plan->keys[u] = rows_[r].id();
      plan->slots[u] = rows_[r].slot;
      upper_.use(r);
    }
  }
}

void SinglePlanner::count(const StepPlan& plan, Batch* batch) {
  std::vector<TableCounts>& counts = upper_.counts();
  for (size_t i = 0; i < plan.staged.size(); ++i) {
    const size_t table = batch->table(static_cast<size_t>(plan.staged[i]));
    ++batch->uses[table].misses;
    ++counts[table].staged;
    if (LowerTier* lower = upper_.lower()) lower->note(table, 1, plan.staged_from[i] == kNoSlot);
  }
  for (size_t t = 0; t < counts.size(); ++t) counts[t].add(batch->uses[t]);
}

void SinglePlanner::fail(const char* cause) {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.note(Failure::Left::kNothing, cause);
}

void SinglePlanner::release(int64_t number, bool updated, bool used) {
  std::lock_guard<std::mutex> lock(mutex_);
  HeldPlans::Held* held = held_.find(number);
  if (held == nullptr) throw std::logic_error("release: no such plan is held");
  if (!used && !held->released) {
    for (size_t t = 0; t < held->uses.size(); ++t) upper_.counts()[t].take_back(held->uses[t]);
  }
  held->released = true;
  held->updated = updated;
}

}  // namespace te
