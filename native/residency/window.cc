// The planner's window: which future batches use which rows, told by positions (see planner.h).
#include <algorithm>
#include <utility>

#include "residency/planner.h"

namespace te {
namespace {

constexpr uint32_t kLastPosition = 0xF0000000u;
constexpr int64_t kBlock = 32;  // ids whose cache misses overlap
constexpr int64_t kMarksAhead = 256;

}  // namespace

// --- positions ------------------------------------------------------------------------------

uint32_t Planner::oldest_live_position() const {
  for (const Planned& p : planned_) {
    if (p.base != 0) return p.base;
  }
  return window_base();
}

// Makes room for `n` positions more, so that take_position need not look.
void Planner::reserve_positions(int64_t n) {
  if (uint64_t{next_position_} + static_cast<uint64_t>(n) >= kLastPosition) renumber_locked();
  if (uint64_t{next_position_} + static_cast<uint64_t>(n) >= kLastPosition) {
    throw std::overflow_error("push: the window holds more rows than positions can count");
  }
  live_from_ = oldest_live_position();
  while (next_position_ - live_from_ + static_cast<uint64_t>(n) >= chain_.size()) grow_chain();
}

uint32_t Planner::take_position() {
  const uint32_t position = next_position_++;
  chain_[position & (chain_.size() - 1)] = 0;
  return position;
}

void Planner::grow_chain() {
  std::vector<uint32_t> larger(chain_.size() * 2, 0);
  for (uint32_t p = live_from_; p < next_position_; ++p) {
    larger[p & (larger.size() - 1)] = chain_[p & (chain_.size() - 1)];
  }
  chain_.swap(larger);
}

void Planner::renumber() {
  std::lock_guard<std::mutex> lock(mutex_);
  renumber_locked();
}

void Planner::renumber_locked() {
  // A multiple of the ring's size, so that every live position keeps its place in the ring.
  const uint32_t size = static_cast<uint32_t>(chain_.size());
  const uint32_t shift = (oldest_live_position() - 1) / size * size;
  if (shift == 0) return;
  const auto moved = [shift](uint32_t p) { return p > shift ? p - shift : 0; };
  for (uint32_t& p : chain_) p = moved(p);
  rows_.for_each([&](Row& row) { row.mark = moved(row.mark); });
  for (size_t i = 0; i < whole_marks_.capacity(); ++i) {
    if (whole_marks_[i] != 0) whole_marks_[i] = moved(whole_marks_[i]);
  }
  for (Batch& b : window_) b.base -= shift;
  for (Planned& p : planned_) {
    if (p.base != 0) p.base -= shift;
  }
  next_position_ -= shift;
}

// The plan number of the first use behind `position` that has no plan yet. `mark` is the row's
// last position. REQUIRES: mark >= window_base().
int64_t Planner::next_use_after(uint32_t position, uint32_t mark) const {
  const uint32_t base = window_base();
  while (position != 0 && position < base) position = chain_[position & (chain_.size() - 1)];
  // The chain ends early when a cancelled window lay in between; the last use is a safe answer.
  if (position == 0) position = mark;
  const auto after = std::upper_bound(window_.begin(), window_.end(), position,
                                      [](uint32_t p, const Batch& b) { return p < b.base; });
  return next_plan_ + (after - window_.begin()) - 1;
}

// --- window ---------------------------------------------------------------------------------

void Planner::push(const std::vector<Segment>& segments) {
  std::lock_guard<std::mutex> lock(mutex_);
  push_locked(segments);
}

void Planner::push_locked(const std::vector<Segment>& segments) {
  int64_t total = 0;
  for (const Segment& s : segments) total += s.num_ids;
  reserve_positions(total);
  Batch batch;
  batch.base = next_position_;
  batch.inverse.resize(static_cast<size_t>(total));
  batch.handles.resize(static_cast<size_t>(total));
  if (counts_.size() > 1) batch.tables.resize(static_cast<size_t>(total));
  batch.lookups.resize(counts_.size());
  batch.unique.resize(counts_.size());
  // The batch is part of the window while its ids are noted, so that its first position counts.
  window_.push_back(std::move(batch));
  Batch* b = &window_.back();
  int32_t* inverse = b->inverse.data();
  for (const Segment& s : segments) {
    const int32_t before = b->num_unique;
    if (options_.tables[static_cast<size_t>(s.table)].first_slot >= 0) {
      dedupe_whole(s, b, inverse);
    } else {
      dedupe_cached(s, b, inverse);
    }
    inverse += s.num_ids;
    b->lookups[s.table] += s.num_ids;
    b->unique[s.table] += b->num_unique - before;
  }
  b->trim();
}

void Planner::Batch::trim() {
  const size_t n = static_cast<size_t>(num_unique);
  handles.resize(n);
  handles.shrink_to_fit();
  if (tables.empty()) return;
  tables.resize(n);
  tables.shrink_to_fit();
}

void Planner::dedupe_whole(const Segment& segment, Batch* batch, int32_t* inverse) {
  const uint32_t base = batch->base;
  const uint32_t first = static_cast<uint32_t>(options_.tables[segment.table].first_slot);
  const RowHandle first_handle = kWhole | first;
  uint32_t* marks = whole_marks_.data() + first;
  RowHandle* handles = batch->handles.data();
  const uint32_t before = static_cast<uint32_t>(batch->num_unique);
  uint32_t num_unique = before;
  // Without a branch, which would go wrong for every other id: the odds say so to the compiler. A
  // row seen before is written where the next new one goes. Positions need no chain: nothing asks
  // for its next use.
  const auto note = [&](int64_t i) {
    const int64_t id = segment.ids[i];
    const uint32_t seen = marks[id] - base;  // num_unique or more where the row is new
    const bool is_old = __builtin_expect_with_probability(seen < num_unique, 1, 0.5);
    const uint32_t u = is_old ? seen : num_unique;
    marks[id] = base + u;
    handles[num_unique] = first_handle + static_cast<uint32_t>(id);
    num_unique += !is_old;
    inverse[i] = static_cast<int32_t>(u);
  };
  int64_t i = 0;
  for (; i + kMarksAhead < segment.num_ids; ++i) {
    __builtin_prefetch(marks + segment.ids[i + kMarksAhead], 0, 2);
    note(i);
  }
  for (; i < segment.num_ids; ++i) note(i);
  if (!batch->tables.empty()) {
    std::fill(batch->tables.begin() + before, batch->tables.begin() + num_unique,
              static_cast<uint16_t>(segment.table));
  }
  batch->num_unique = static_cast<int32_t>(num_unique);
  next_position_ = base + num_unique;
}

void Planner::dedupe_cached(const Segment& segment, Batch* batch, int32_t* inverse) {
  const uint32_t base = batch->base;
  const uint32_t table = static_cast<uint32_t>(segment.table);
  const int64_t plan_number = next_plan_ + static_cast<int64_t>(window_.size()) - 1;
  // Two cache misses an id, index and row: each is fetched a block ahead of its use.
  uint32_t hashes[4 * kBlock];
  const auto hash_block = [&](int64_t begin) {
    const int64_t end = std::min(segment.num_ids, begin + kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t h = RowTable::hash(table, segment.ids[i]);
      hashes[i % (4 * kBlock)] = h;
      rows_.prefetch_index(h);
    }
  };
  const auto fetch_block = [&](int64_t begin) {
    const int64_t end = std::min(segment.num_ids, begin + kBlock);
    for (int64_t i = begin; i < end; ++i) rows_.prefetch_row(hashes[i % (4 * kBlock)]);
  };
  hash_block(0);
  hash_block(kBlock);
  fetch_block(0);
  for (int64_t begin = 0; begin < segment.num_ids; begin += kBlock) {
    hash_block(begin + 2 * kBlock);
    fetch_block(begin + kBlock);
    const int64_t end = std::min(segment.num_ids, begin + kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = segment.ids[i];
      const uint32_t h = hashes[i % (4 * kBlock)];
      RowHandle r = rows_.find(h, table, id);
      if (r == kNoRow) r = rows_.insert(h, table, id);
      uint32_t mark = rows_[r].mark;
      if (mark < base) {
        note_use(r, plan_number);
        mark = rows_[r].mark;
        batch->add(r, segment.table);
      }
      inverse[i] = static_cast<int32_t>(mark - base);
    }
  }
}

// Row `r` gets the next position as a use by plan `plan_number`.
void Planner::note_use(RowHandle r, int64_t plan_number) {
  const uint32_t position = take_position();
  const uint32_t before = rows_[r].mark;
  if (before != 0 && before >= live_from_) {
    chain_[before & (chain_.size() - 1)] = position;
  }
  rows_[r].mark = position;
  if (rows_[r].listed && before < window_base()) reschedule(r, plan_number);
}

void Planner::reschedule(RowHandle r, int64_t next_use) {
  if (here(rows_[r])) {
    policy_->reschedule(r, next_use);
  } else {
    lower_->reschedule(r, next_use);
  }
}

void Planner::cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  cancel_locked();
}

void Planner::cancel_locked() {
  const uint32_t first_cancelled = window_base();
  for (const Batch& b : window_) {
    for (RowHandle r : b.handles) {
      if (r & kWhole) continue;
      rows_[r].mark = 0;
      if (rows_[r].scheduled) reschedule(r, kNever);
    }
  }
  for (const Batch& b : window_) {
    for (RowHandle r : b.handles) {
      if (!(r & kWhole) && rows_[r].slot == kNoSlot) rows_.erase(r);
    }
  }
  window_.clear();
  // Later uses of pinned rows start from their last planned use again.
  for (const Planned& p : planned_) {
    if (p.base == 0) continue;
    for (size_t u = 0; u < p.handles.size(); ++u) {
      if (p.handles[u] & kWhole) continue;
      const uint32_t position = p.base + static_cast<uint32_t>(u);
      uint32_t& later = chain_[position & (chain_.size() - 1)];
      if (later >= first_cancelled) later = 0;
      Row& row = rows_[p.handles[u]];
      row.mark = std::max(row.mark, position);
    }
  }
}

// Appends a batch that `cancel` dropped; its rows keep their order, so `inverse` still holds.
void Planner::push_again(Batch batch, const std::vector<int64_t>& keys) {
  const int64_t plan_number = next_plan_ + static_cast<int64_t>(window_.size());
  reserve_positions(static_cast<int64_t>(keys.size()));
  batch.base = next_position_;
  window_.push_back(std::move(batch));
  Batch& b = window_.back();
  for (size_t u = 0; u < keys.size(); ++u) {
    if (b.handles[u] & kWhole) {
      whole_marks_[b.handles[u] & ~kWhole] = take_position();
      continue;
    }
    const uint32_t h = RowTable::hash(b.table(u), keys[u]);
    RowHandle r = rows_.find(h, b.table(u), keys[u]);
    if (r == kNoRow) r = rows_.insert(h, b.table(u), keys[u]);
    b.handles[u] = r;
    note_use(r, plan_number);
  }
}

}  // namespace te
