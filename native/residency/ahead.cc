// What the planner answers before a plan is made, and batches that come ahead of its window.
#include <algorithm>
#include <utility>

#include "residency/planner.h"

namespace te {

// --- ahead of the window --------------------------------------------------------------------

void Planner::push_ahead(const std::vector<Segment>& segments) {
  std::lock_guard<std::mutex> lock(mutex_);
  push_ahead_locked(segments);
}

void Planner::push_ahead_locked(const std::vector<Segment>& segments) {
  forget_later();
  for (const Batch& b : window_) {
    later_.keys.emplace_back();
    for (size_t u = 0; u < b.handles.size(); ++u) {
      later_.keys.back().push_back(key_of(b.handles[u], b.table(u)));
    }
  }
  later_.batches = window_;
  if (!window_.empty()) cancel_locked();
  push_locked(segments);
  push_later();
}

void Planner::take_back_ahead() {
  std::lock_guard<std::mutex> lock(mutex_);
  take_back_ahead_locked();
}

void Planner::take_back_ahead_locked() {
  cancel_locked();
  push_later();
}

void Planner::forget_later() {
  later_.batches.clear();
  later_.keys.clear();
}

void Planner::push_later() {
  for (size_t i = 0; i < later_.batches.size(); ++i) push_again(later_.batches[i], later_.keys[i]);
}

int32_t Planner::take_occurrences(bool ahead, PlainVector<int32_t>* inverse) {
  std::lock_guard<std::mutex> lock(mutex_);
  Batch& batch = ahead ? window_.front() : window_.back();
  *inverse = std::move(batch.inverse);
  return batch.num_unique;
}

// --- whether a plan can be made -------------------------------------------------------------

int64_t Planner::num_held(int64_t depth) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_held_locked(depth);
}

int64_t Planner::num_held_locked(int64_t depth) const {
  if (planned_.size() < kMaxPins) return 0;
  const int64_t held = std::count_if(planned_.begin(), planned_.end(), [&](const Planned& p) {
    return !p.released || p.number >= next_plan_ - depth;
  });
  return held >= kMaxPins ? held : 0;
}

int64_t Planner::num_missing(int64_t depth) {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::max(int64_t{0}, shortage(window_.front(), depth));
}

}  // namespace te
