#include "residency/planner.h"

#include <algorithm>
#include <utility>

namespace te {
namespace {

constexpr uint8_t kResident = 1;
constexpr uint8_t kDirty = 2;
constexpr uint32_t kForgetBehind = 1u << 22;  // positions; 16 MiB of chain

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

Planner::Planner(PlannerOptions options)
    : options_(std::move(options)),
      all_whole_(std::all_of(options_.tables.begin(), options_.tables.end(),
                             [](const TableShape& t) { return t.first_slot >= 0; })),
      lower_first_(static_cast<uint32_t>(options_.whole_slots + options_.cached_slots +
                                         options_.overflow_slots)),
      rows_(static_cast<size_t>(options_.cached_slots + options_.lower_slots)),
      policy_(make_policy(options_.policy, {&rows_, options_.whole_slots, options_.cached_slots,
                                            options_.overflow_slots})),
      whole_marks_(static_cast<size_t>(options_.whole_slots)),
      whole_flags_(static_cast<size_t>(options_.whole_slots)),
      fresh_slot_(options_.whole_slots),
      fresh_overflow_(options_.whole_slots + options_.cached_slots),
      chain_(1024, 0),
      counts_(options_.tables.size()) {
  if (options_.lower_slots > 0) {
    lower_ = std::make_unique<LowerTier>(&rows_, options_.policy, lower_first_,
                                         options_.lower_slots, options_.backed, counts_.size());
  }
}

// --- plans ----------------------------------------------------------------------------------

std::shared_ptr<StepPlan> Planner::plan_now(const std::vector<Segment>& segments) {
  std::lock_guard<std::mutex> lock(mutex_);
  push_ahead_locked(segments);
  try {
    return plan_locked(0);
  } catch (...) {
    take_back_ahead_locked();
    throw;
  }
}

std::shared_ptr<StepPlan> Planner::plan(int64_t depth) {
  std::lock_guard<std::mutex> lock(mutex_);
  return plan_locked(depth);
}

int64_t Planner::key_of(RowHandle handle, uint16_t table) const {
  if (handle & kWhole) return (handle & ~kWhole) - options_.tables[table].first_slot;
  return rows_[handle].id();
}

std::shared_ptr<StepPlan> Planner::plan_locked(int64_t depth) {
  if (window_.empty()) throw std::logic_error("plan: the window is empty");

  if (const int64_t held = num_held_locked(depth); held > 0) throw TooManyHeld(held);
  const int64_t missing = shortage(window_.front(), depth);
  if (missing > 0) throw NoCapacity(missing, options_.cached_slots + options_.lower_slots);

  auto plan = std::make_shared<StepPlan>();
  Batch batch = std::move(window_.front());
  window_.pop_front();
  const int64_t number = next_plan_++;
  plan->number = number;
  const size_t num_unique = batch.handles.size();

  // Pin what is resident first, so that no row of this batch passes through the policy.
  const bool whole_resident = num_whole_resident_ == options_.whole_slots;
  for (size_t u = 0; u < num_unique && !(all_whole_ && whole_resident); ++u) {
    const RowHandle r = batch.handles[u];
    prefetch_row(batch.handles, u);
    if (r & kWhole) {
      if (whole_resident) continue;
      prefetch_flag(batch.handles, u);
      if (whole_flags_[r & ~kWhole] & kResident) continue;
    } else if (here(rows_[r])) {
      pin(r);
      continue;
    }
    plan->staged.push_back(static_cast<int32_t>(u));
  }
  // Released plans older than `depth` let go; one that is held back keeps only its own rows.
  for (auto it = planned_.begin(); it != planned_.end() && it->number < number - depth;) {
    if (it->released) {
      unpin(&*it);
      it = planned_.erase(it);
    } else {
      // Or one output kept for ever would keep every later position alive.
      if (next_position_ - it->base > kForgetBehind) it->base = 0;
      ++it;
    }
  }
  policy_->advance(number);
  if (lower_) lower_->advance(number);
  for (const Transient& t : transient_) evict(t.row, t.next_use, plan.get());
  transient_.clear();

  // Give every miss a slot.
  for (int32_t u : plan->staged) {
    const RowHandle r = batch.handles[u];
    if (r & kWhole) {
      whole_flags_[r & ~kWhole] = kResident;
      ++num_whole_resident_;
      if (lower_) plan->staged_from.push_back(kNoSlot);
      continue;
    }
    if (lower_) {
      plan->staged_from.push_back(lower_->holds(rows_[r]) ? lower_->give(r) : kNoSlot);
    }
    int32_t slot;
    if (num_free() == 0) {
      int64_t next_use;
      const RowHandle victim = policy_->evict(&next_use);
      if (victim != kNoRow) {
        rows_[victim].listed = 0;
        --num_listed_;
        evict(victim, next_use, plan.get());
      }
    }
    if (!free_slots_.empty()) {
      slot = free_slots_.back();
      free_slots_.pop_back();
    } else if (fresh_slot_ < options_.whole_slots + options_.cached_slots) {
      slot = static_cast<int32_t>(fresh_slot_++);
    } else {
      if (!free_overflow_.empty()) {
        slot = free_overflow_.back();
        free_overflow_.pop_back();
      } else {
        slot = static_cast<int32_t>(fresh_overflow_++);
      }
      ++plan->overflow;
      ++counts_[batch.table(static_cast<size_t>(u))].overflow;
    }
    rows_[r].slot = slot;
    rows_[r].pins = 1;
  }
  if (lower_) lower_->settle(window_base(), plan.get());

  plan->keys.resize(num_unique);
  plan->slots.resize(num_unique);
  if (all_whole_ && batch.tables.empty()) {
    const int64_t first = options_.tables[0].first_slot;
    for (size_t u = 0; u < num_unique; ++u) {
      const int32_t slot = static_cast<int32_t>(batch.handles[u] & ~kWhole);
      plan->slots[u] = slot;
      plan->keys[u] = slot - first;
    }
  } else {
    name_rows(batch, plan.get());
  }
  note_misses(*plan, batch);
  for (size_t t = 0; t < counts_.size(); ++t) {
    counts_[t].lookups += batch.lookups[t];
    counts_[t].unique += batch.unique[t];
  }

  if (options_.keeps_occurrences) {
    group_by_row(batch.inverse, plan.get());
    plan->inverse = std::move(batch.inverse);
  }
  plan->tables = std::move(batch.tables);
  plan->tables.resize(num_unique, 0);  // of a pool of one table: all zero
  planned_.push_back({number, batch.base, std::move(batch.handles)});
  forget_later();
  return plan;
}

// Keys and slots of the batch's rows, which all have one.
void Planner::name_rows(const Batch& batch, StepPlan* plan) {
  for (size_t u = 0; u < batch.handles.size(); ++u) {
    const RowHandle r = batch.handles[u];
    prefetch_row(batch.handles, u);
    plan->keys[u] = key_of(r, batch.table(u));
    if (r & kWhole) {
      plan->slots[u] = static_cast<int32_t>(r & ~kWhole);
    } else {
      plan->slots[u] = rows_[r].slot;
      policy_->use(r);
    }
  }
}

void Planner::note_misses(const StepPlan& plan, const Batch& batch) {
  for (size_t i = 0; i < plan.staged.size(); ++i) {
    const size_t table = batch.table(static_cast<size_t>(plan.staged[i]));
    ++counts_[table].misses;
    ++counts_[table].staged;
    if (lower_) lower_->note(table, 1, plan.staged_from[i] == kNoSlot);
  }
}

// Slots that the plan of `batch` would lack, in either tier. Nothing changes: a plan that fails
// must leave the policies' order and the transient rows as they are.
int64_t Planner::shortage(const Batch& batch, int64_t depth) {
  // Nothing may fall out of the lower tier, so all that leaves the upper one needs a slot there.
  const bool must_keep = lower_ && !options_.backed;
  const int64_t num_unique = static_cast<int64_t>(batch.handles.size());
  const int64_t num_transient = options_.overflow_slots - num_free_overflow();
  if (all_whole_ || (num_unique <= num_free() + num_free_overflow() &&
                     (!must_keep || num_unique + num_transient <= lower_->room()))) {
    return 0;
  }
  int64_t misses = 0;
  int64_t rising = 0;  // what lies in the lower tier unlisted makes room there by going up
  int64_t can_go = num_listed_;
  for (RowHandle r : batch.handles) {
    if (r & kWhole) continue;
    Row& row = rows_[r];
    if (here(row)) {
      can_go -= row.listed;
      row.pins = (row.pins + 1u) & kMaxPins;
    } else {
      ++misses;
      if (must_keep && lower_->holds(row)) rising += 1 - row.listed;
    }
  }
  const auto lets_go = [&](const Planned& p) {
    return p.released && p.number < next_plan_ - depth;
  };
  int64_t leaving = 0;  // from transient slots
  for (Planned& p : planned_) {
    if (!lets_go(p)) continue;
    settle(&p);
    for (RowHandle r : p.handles) {
      if (r & kWhole) continue;
      Row& row = rows_[r];
      row.pins = (row.pins - 1u) & kMaxPins;
      if (row.pins != 0) continue;
      const bool transient = row.slot >= options_.whole_slots + options_.cached_slots;
      ++(transient ? leaving : can_go);
      if (!transient && stays(row)) --can_go;
    }
  }
  for (const Planned& p : planned_) {
    if (!lets_go(p)) continue;
    for (RowHandle r : p.handles) {
      if (!(r & kWhole)) rows_[r].pins = (rows_[r].pins + 1u) & kMaxPins;
    }
  }
  for (RowHandle r : batch.handles) {
    if (!(r & kWhole) && here(rows_[r])) rows_[r].pins = (rows_[r].pins - 1u) & kMaxPins;
  }
  const int64_t missing = misses - num_free() - can_go - num_free_overflow() - leaving;
  if (!must_keep) return missing;
  // Rows in transient slots come down in a later plan: their room is kept.
  const int64_t coming = std::max(int64_t{0}, misses - num_free()) + num_transient;
  return std::max(missing, coming - rising - lower_->room());
}

void Planner::evict(RowHandle r, int64_t next_use, StepPlan* plan) {
  policy_->leave(r);
  Row& row = rows_[r];
  plan->victim_keys.push_back(row.id());
  plan->victim_tables.push_back(static_cast<uint16_t>(row.table));
  plan->victim_slots.push_back(row.slot);
  plan->victim_dirty.push_back(row.dirty);
  TableCounts& counts = counts_[row.table];
  ++counts.evicted;
  counts.written_back += row.dirty;
  const bool overflow = row.slot >= options_.whole_slots + options_.cached_slots;
  (overflow ? free_overflow_ : free_slots_).push_back(row.slot);
  row.slot = kNoSlot;
  if (lower_) {
    lower_->descend(r, next_use);
    return;
  }
  row.dirty = 0;
  // Still used inside the window: the batches there name it by its handle.
  if (row.mark < window_base()) rows_.erase(r);
}

void Planner::settle(Planned* planned) {
  if (!planned->updated || planned->settled) return;
  planned->settled = true;
  if (all_whole_ && num_whole_dirty_ == options_.whole_slots) return;
  for (size_t u = 0; u < planned->handles.size(); ++u) {
    const RowHandle r = planned->handles[u];
    if (!all_whole_) prefetch_row(planned->handles, u);
    if (r & kWhole) {
      prefetch_flag(planned->handles, u);
      uint8_t& flags = whole_flags_[r & ~kWhole];
      num_whole_dirty_ += (flags & kDirty) == 0;
      flags |= kDirty;
    } else {
      rows_[r].dirty = 1;
    }
  }
}

void Planner::unpin(Planned* planned) {
  settle(planned);
  if (all_whole_) return;  // no row of theirs was ever listed
  const uint32_t base = window_base();
  for (size_t u = 0; u < planned->handles.size(); ++u) {
    const RowHandle r = planned->handles[u];
    prefetch_row(planned->handles, u);
    if (r & kWhole) continue;
    Row& row = rows_[r];
    const uint32_t position = planned->base == 0 ? 0 : planned->base + static_cast<uint32_t>(u);
    const int64_t next_use =
        row.pins == 1 && row.mark >= base ? next_use_after(position, row.mark) : kNever;
    if (row.pins == 1 && row.slot >= options_.whole_slots + options_.cached_slots) {
      row.pins = 0;
      transient_.push_back({r, next_use});
    } else {
      drop_pin(r, next_use);
    }
  }
}

void Planner::pin(RowHandle r) {
  Row& row = rows_[r];
  row.pins = (row.pins + 1u) & kMaxPins;
  if (!row.listed) return;
  policy_->remove(r);
  row.listed = 0;
  --num_listed_;
}

void Planner::drop_pin(RowHandle r, int64_t next_use) {
  Row& row = rows_[r];
  row.pins = (row.pins - 1u) & kMaxPins;
  if (row.pins != 0 || stays(row)) return;
  row.listed = 1;
  ++num_listed_;
  policy_->insert(r, next_use);
}

int64_t Planner::num_free_overflow() const {
  return options_.whole_slots + options_.cached_slots + options_.overflow_slots - fresh_overflow_ +
         static_cast<int64_t>(free_overflow_.size());
}

int64_t Planner::num_free() const {
  return options_.whole_slots + options_.cached_slots - fresh_slot_ +
         static_cast<int64_t>(free_slots_.size());
}

void Planner::release(int64_t number, bool updated) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (Planned& p : planned_) {
    if (p.number != number) continue;
    p.released = true;
    p.updated = updated;
    return;
  }
  throw std::logic_error("release: no such plan is held");
}

// --- views ----------------------------------------------------------------------------------

void Planner::find(int32_t table, const int64_t* ids, int64_t n, int32_t* slots) {
  std::lock_guard<std::mutex> lock(mutex_);
  const TableShape& shape = options_.tables[table];
  for (int64_t i = 0; i < n; ++i) {
    if (shape.first_slot >= 0) {
      const int64_t slot = shape.first_slot + ids[i];
      slots[i] = (whole_flags_[slot] & kResident) ? static_cast<int32_t>(slot) : kNoSlot;
    } else {
      const uint32_t t = static_cast<uint32_t>(table);
      const RowHandle r = rows_.find(RowTable::hash(t, ids[i]), t, ids[i]);
      slots[i] = r == kNoRow ? kNoSlot : rows_[r].slot;
    }
  }
}

ResidentRows Planner::dirty_rows() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (Planned& p : planned_) {
    if (p.released) settle(&p);
  }
  ResidentRows out;
  for (size_t t = 0; t < options_.tables.size(); ++t) {
    const TableShape& shape = options_.tables[t];
    if (shape.first_slot < 0) continue;
    for (int64_t id = 0; id < shape.num_rows; ++id) {
      const int64_t slot = shape.first_slot + id;
      if (!(whole_flags_[slot] & kDirty)) continue;
      out.tables.push_back(static_cast<uint16_t>(t));
      out.keys.push_back(id);
      out.slots.push_back(static_cast<int32_t>(slot));
    }
  }
  rows_.for_each([&](const Row& row) {
    if (row.slot < 0 || !row.dirty) return;
    out.tables.push_back(static_cast<uint16_t>(row.table));
    out.keys.push_back(row.id());
    out.slots.push_back(row.slot);
  });
  return out;
}

void Planner::mark_clean() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t t = 0; t < options_.tables.size(); ++t) {
    const TableShape& shape = options_.tables[t];
    if (shape.first_slot < 0) continue;
    for (int64_t slot = shape.first_slot; slot < shape.first_slot + shape.num_rows; ++slot) {
      if (!(whole_flags_[slot] & kDirty)) continue;
      whole_flags_[slot] = kResident;
      ++counts_[t].written_back;
    }
  }
  num_whole_dirty_ = 0;
  rows_.for_each([&](Row& row) {
    if (row.slot < 0 || !row.dirty) return;
    if (here(row)) {
      ++counts_[row.table].written_back;
      row.dirty = 0;
    } else {
      lower_->mark_clean(&row);
    }
  });
}

std::vector<TableCounts> Planner::counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

std::vector<TableCounts> Planner::lower_counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return lower_ ? lower_->counts() : std::vector<TableCounts>();
}

int64_t Planner::num_lower_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return lower_ ? lower_->num_resident() : 0;
}

int64_t Planner::window_size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(window_.size());
}

int64_t Planner::num_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const int64_t fresh = options_.cached_slots + options_.overflow_slots;
  return num_whole_resident_ + fresh - num_free() - num_free_overflow();
}

bool Planner::all_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return options_.cached_slots == 0 && num_whole_resident_ == options_.whole_slots;
}

int64_t Planner::overhead_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = rows_.bytes() + chain_.size() * 4 + whole_marks_.bytes() + whole_flags_.bytes();
  bytes += policy_->bytes() + (lower_ ? lower_->bytes() : 0);
  bytes += (free_slots_.capacity() + free_overflow_.capacity()) * 4;
  for (const Batch& b : window_) {
    bytes += (b.handles.capacity() + b.inverse.capacity()) * 4 + b.tables.capacity() * 2;
  }
  for (const Planned& p : planned_) bytes += p.handles.capacity() * 4;
  return static_cast<int64_t>(bytes);
}

}  // namespace te
