// Whether a plan can be made: what SinglePlanner counts before anything changes.
#include <algorithm>
#include <utility>

#include "residency/single_planner.h"

namespace te {
namespace {

using Pin =
    std::pair<RowHandle, bool>;  // of a plan that drops it; whether the plan updated the row

bool is_in(const std::vector<RowHandle>& sorted, RowHandle r) {
  return std::binary_search(sorted.begin(), sorted.end(), r);
}

}  // namespace

void SinglePlanner::require_room(const Batch& batch, int64_t depth) const {
  if (const int64_t held = num_held_locked(depth); held > 0) throw TooManyHeld(held);
  const int64_t missing = shortage(batch, depth);
  if (missing > 0) throw NoCapacity(missing, options_.cached_slots + options_.lower_slots);
}

int64_t SinglePlanner::num_held(int64_t depth) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_held_locked(depth);
}

int64_t SinglePlanner::num_held_locked(int64_t depth) const {
  if (held_.size() < kMaxPins) return 0;
  const int64_t held = held_.num_staying(window_.next_plan(), depth);
  return held >= kMaxPins ? held : 0;
}

int64_t SinglePlanner::num_missing(int64_t depth) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::max(int64_t{0}, shortage(aside_ ? *aside_ : window_.oldest(), depth));
}

// Slots that the plan of `batch` would lack, in either tier; 0 or less: none. Free slots alone
// suffice nearly always where a store lies below, since it has overflow slots.
int64_t SinglePlanner::shortage(const Batch& batch, int64_t depth) const {
  const LowerTier* lower = upper_.lower();
  // Nothing may fall out of the lower tier, so all that leaves the upper one needs a slot there.
  const bool must_keep = lower != nullptr && !options_.backed;
  const int64_t num_unique = static_cast<int64_t>(batch.handles.size());
  if (whole_.is_everything() ||
      (num_unique <= upper_.num_free() + upper_.num_free_overflow() &&
       (!must_keep || num_unique + upper_.num_transient() <= lower->room()))) {
    return 0;
  }
  int64_t misses = 0;
  int64_t rising = 0;  // what lies in the lower tier unlisted makes room there by going up
  int64_t can_go = upper_.num_listed();
  std::vector<RowHandle> stay;  // rows of the batch that have their slot
  for (RowHandle r : batch.handles) {
    if (is_whole(r)) continue;
    const Row& row = rows_[r];
    if (upper_.holds(row)) {
      can_go -= row.listed;
      stay.push_back(r);
    } else {
      ++misses;
      if (must_keep && lower->holds(row)) rising += 1 - row.listed;
    }
  }
  std::sort(stay.begin(), stay.end());

  // A row may lose its slot when every plan that pins it drops its pin.
  std::vector<Pin> dropped;
  held_.for_each_leaving(window_.next_plan() - depth, [&](const HeldPlans::Held& held) {
    for (RowHandle r : held.handles) {
      if (!is_whole(r)) dropped.emplace_back(r, held.updated);
    }
  });
  std::sort(dropped.begin(), dropped.end());
  int64_t leaving = 0;  // from overflow slots
  for (size_t i = 0; i < dropped.size();) {
    const RowHandle r = dropped[i].first;
    const Row& row = rows_[r];
    uint32_t pins = row.pins;
    bool dirty = row.dirty;
    for (; i < dropped.size() && dropped[i].first == r; ++i) {
      --pins;
      dirty |= dropped[i].second;
    }
    if (pins != 0 || is_in(stay, r)) continue;
    if (upper_.is_transient(row)) {
      ++leaving;
    } else if (!upper_.stays(dirty)) {
      ++can_go;
    }
  }
  const int64_t missing =
      misses - upper_.num_free() - can_go - upper_.num_free_overflow() - leaving;
  if (!must_keep) return missing;
  // Rows in overflow slots come down in a later plan: their room is kept.
  const int64_t coming = std::max(int64_t{0}, misses - upper_.num_free()) + upper_.num_transient();
  return std::max(missing, coming - rising - lower->room());
}

}  // namespace te
