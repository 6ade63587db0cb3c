#include "residency/replay.h"

#include <utility>

namespace te {

Replay::Replay(Planner* planner, ReplayOptions options)
    : planner_(planner),
      options_(options),
      seen_(0),
      cold_(static_cast<size_t>(options.num_tables)),
      counts_(static_cast<size_t>(options.num_tables)) {}

void Replay::push(const std::vector<BatchedIds>& tables, int64_t num_batches) {
  failure_.require_all();
  failure_.guard(Failure::Left::kNothing, [&] {
    for (int64_t b = 0; b < num_batches; ++b) {
      segments_.clear();
      for (const BatchedIds& t : tables) {
        segments_.push_back({t.table, t.ids + t.offsets[b], t.offsets[b + 1] - t.offsets[b]});
      }
      planner_->push(segments_);
      if (planner_->window_size() > options_.lookahead) plan();
    }
  });
}

void Replay::finish(int64_t num_steps) {
  failure_.require_all();
  failure_.guard(Failure::Left::kNothing, [&] {
    while (planner_->window_size() > 0 && num_steps_ < num_steps) plan();
  });
}

void Replay::plan() {
  const auto plan = planner_->plan(options_.depth);
  std::vector<int64_t> cold_before;
  if (options_.per_step) cold_before = cold_;
  for (int32_t u : plan->staged) {
    const uint32_t table = plan->tables[static_cast<size_t>(u)];
    const int64_t id = plan->keys[static_cast<size_t>(u)];
    const uint32_t h = RowTable::hash(table, id);
    if (seen_.find(h, table, id) != kNoRow) continue;
    seen_.insert(h, table, id);
    ++cold_[table];
  }
  planner_->release(plan->number, options_.updated);
  ++num_steps_;
  if (options_.per_step) note_step(cold_before);
}

void Replay::note_step(const std::vector<int64_t>& cold_before) {
  std::vector<TableCounts> now = planner_->counts({});
  for (size_t t = 0; t < now.size(); ++t) {
    const TableCounts& a = counts_[t];
    const TableCounts& b = now[t];
    const std::array<int64_t, kColumns> row = {b.lookups - a.lookups,
                                               b.unique - a.unique,
                                               b.misses - a.misses,
                                               b.evicted - a.evicted,
                                               b.written_back - a.written_back,
                                               b.overflow - a.overflow,
                                               cold_[t] - cold_before[t]};
    steps_.insert(steps_.end(), row.begin(), row.end());
  }
  counts_ = std::move(now);
}

std::vector<int64_t> Replay::take_steps() { return std::exchange(steps_, {}); }

}  // namespace te
