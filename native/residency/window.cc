#include "residency/window.h"

#include <algorithm>
#include <utility>

namespace te {
namespace {

constexpr uint32_t kLastPosition = 0xF0000000u;
// Builds with checks have few positions, so that tests renumber them all the time.
constexpr size_t kFirstChain = kHasChecks ? 16 : 1024;
constexpr int64_t kBlock = 32;  // ids whose cache misses overlap
constexpr int64_t kMarksAhead = 256;

}  // namespace

Window::Window(RowTable* rows, UpperTier* tiers, const PlannerOptions& options)
    : rows_(*rows),
      tiers_(*tiers),
      tables_(options.tables),
      has_cached_(std::any_of(tables_.begin(), tables_.end(),
                              [](const TableShape& t) { return t.first_slot < 0; })),
      whole_marks_(static_cast<size_t>(options.whole_slots)),
      chain_(kFirstChain, 0) {}

// --- positions ------------------------------------------------------------------------------

uint32_t Window::last_position() const {
  if (!kHasChecks) return kLastPosition;
  return static_cast<uint32_t>(std::min<size_t>(kLastPosition, 4 * chain_.size()));
}

bool Window::reserve(int64_t n, uint32_t oldest) {
  live_from_ = oldest != 0 ? oldest : base();
  const uint64_t end = uint64_t{next_position_} + static_cast<uint64_t>(n);
  while (end - live_from_ >= chain_.size() && end < kLastPosition) grow_chain();
  return end < last_position();
}

void Window::grow_chain() {
  std::vector<uint32_t> larger(chain_.size() * 2, 0);
  for (uint32_t p = live_from_; p < next_position_; ++p) {
    larger[p & (larger.size() - 1)] = link(p);
  }
  chain_.swap(larger);
}

uint32_t Window::renumber(uint32_t oldest) {
  // A multiple of the ring's size, so that every live position keeps its place in the ring.
  const uint32_t size = static_cast<uint32_t>(chain_.size());
  const uint32_t shift = ((oldest != 0 ? oldest : base()) - 1) / size * size;
  if (shift == 0) return 0;
  const auto moved = [shift](uint32_t p) { return p > shift ? p - shift : 0; };
  for (uint32_t& p : chain_) p = moved(p);
  rows_.for_each([&](Row& row) { row.mark = moved(row.mark); });
  for (size_t i = 0; i < whole_marks_.capacity(); ++i) {
    if (whole_marks_[i] != 0) whole_marks_[i] = moved(whole_marks_[i]);
  }
  for (Batch& b : batches_) b.base -= shift;
  next_position_ -= shift;
  return shift;
}

int64_t Window::next_use_after(uint32_t position, uint32_t mark) const {
  const uint32_t first = base();
  TE_CHECK(mark >= first, "the row has a use inside the window");
  while (position != 0 && position < first) position = link(position);
  if (position == 0) position = mark;
  const auto after = std::upper_bound(batches_.begin(), batches_.end(), position,
                                      [](uint32_t p, const Batch& b) { return p < b.base; });
  return next_plan_ + (after - batches_.begin()) - 1;
}

// --- batches in the window ------------------------------------------------------------------

Batch Window::new_batch(int64_t num_ids) const {
  Batch batch;
  const size_t n = static_cast<size_t>(num_ids);
  batch.base = next_position_;
  batch.inverse.resize(n);
  batch.handles.resize(n);
  if (tables_.size() > 1) batch.tables.resize(n);
  batch.uses.resize(tables_.size());
  return batch;
}

void Window::push(const std::vector<Segment>& segments) {
  // The batch is part of the window while its ids are noted, so that its first position counts.
  batches_.push_back(new_batch(num_ids_of(segments)));
  dedupe<false>(segments, &batches_.back());
}

template <bool kAside>
void Window::dedupe(const std::vector<Segment>& segments, Batch* batch) {
  int32_t* inverse = batch->inverse.data();
  for (const Segment& s : segments) {
    TE_CHECK(s.table >= 0 && static_cast<size_t>(s.table) < tables_.size(), "the table exists");
    TE_CHECK(first_bad_id(s.ids, s.num_ids, tables_[s.table].num_rows) < 0,
             "ids lie inside their tables");
    const int32_t before = batch->num_unique;
    if (tables_[s.table].first_slot >= 0) {
      dedupe_whole(s, batch, inverse);
    } else {
      dedupe_cached<kAside>(s, batch, inverse);
    }
    inverse += s.num_ids;
    batch->uses[s.table].lookups += s.num_ids;
    batch->uses[s.table].unique += batch->num_unique - before;
  }
  batch->trim();
}

void Window::dedupe_whole(const Segment& segment, Batch* batch, int32_t* inverse) {
  const uint32_t base = batch->base;
  const uint32_t first = static_cast<uint32_t>(tables_[segment.table].first_slot);
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

template <bool kAside>
void Window::dedupe_cached(const Segment& segment, Batch* batch, int32_t* inverse) {
  RowTable& rows = rows_;  // a local name: the loop need not read the reference again
  const uint32_t base = batch->base;
  const uint32_t table = static_cast<uint32_t>(segment.table);
  const int64_t plan_number = next_plan_ + size() - 1;
  // Two cache misses an id, index and row: each is fetched a block ahead of its use.
  uint32_t hashes[4 * kBlock];
  const auto hash_block = [&](int64_t begin) {
    const int64_t end = std::min(segment.num_ids, begin + kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t h = RowTable::hash(table, segment.ids[i]);
      hashes[i % (4 * kBlock)] = h;
      rows.prefetch_index(h);
    }
  };
  const auto fetch_block = [&](int64_t begin) {
    const int64_t end = std::min(segment.num_ids, begin + kBlock);
    for (int64_t i = begin; i < end; ++i) rows.prefetch_row(hashes[i % (4 * kBlock)]);
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
      RowHandle r = rows.find(h, table, id);
      if (r == kNoRow) r = rows.insert(h, table, id);
      uint32_t mark = rows[r].mark;
      if (mark < base) {
        if constexpr (kAside) {
          were_marked_[static_cast<size_t>(batch->num_unique)] = mark;
          rows[r].mark = mark = next_position_++;
        } else {
          mark = note_use(r, plan_number);
        }
        batch->add(r, segment.table);
      }
      inverse[i] = static_cast<int32_t>(mark - base);
    }
  }
}

// Row `r` gets the next position, which is returned, as a use by plan `plan_number`.
uint32_t Window::note_use(RowHandle r, int64_t plan_number) {
  const uint32_t position = take_position();
  Row& row = rows_[r];
  const uint32_t before = row.mark;
  if (before != 0 && before >= live_from_) link(before) = position;
  row.mark = position;
  if (row.listed && before < base()) tiers_.reschedule(r, row, plan_number);
  return position;
}

Batch Window::take_oldest() {
  TE_CHECK(!batches_.empty(), "the window has a batch");
  Batch batch = std::move(batches_.front());
  batches_.pop_front();
  ++next_plan_;
  return batch;
}

void Window::cancel() {
  for (const Batch& b : batches_) {
    for (RowHandle r : b.handles) {
      if (is_whole(r)) continue;
      Row& row = rows_[r];
      row.mark = 0;
      if (row.scheduled) tiers_.reschedule(r, row, kNever);
    }
  }
  for (const Batch& b : batches_) {
    for (RowHandle r : b.handles) {
      if (!is_whole(r) && rows_[r].slot == kNoSlot) rows_.erase(r);
    }
  }
  batches_.clear();
}

void Window::restore(uint32_t first, const PlainVector<RowHandle>& handles,
                     uint32_t first_cancelled) {
  for (size_t u = 0; u < handles.size(); ++u) {
    if (is_whole(handles[u])) continue;
    const uint32_t position = first + static_cast<uint32_t>(u);
    uint32_t& later = link(position);
    if (later >= first_cancelled) later = 0;
    Row& row = rows_[handles[u]];
    row.mark = std::max(row.mark, position);
  }
}

// --- a batch aside --------------------------------------------------------------------------

Batch Window::push_aside(const std::vector<Segment>& segments) {
  Batch batch = new_batch(num_ids_of(segments));
  if (has_cached_) were_marked_.resize(batch.handles.size());
  dedupe<true>(segments, &batch);
  return batch;
}

void Window::adopt(Batch* batch) {
  if (!batches_.empty()) {
    put_back(*batch);
    batch->base = 0;
  } else if (has_cached_) {
    for (size_t u = 0; u < batch->handles.size(); ++u) {
      if (is_whole(batch->handles[u])) continue;
      const uint32_t position = batch->base + static_cast<uint32_t>(u);
      const uint32_t before = were_marked_[u];
      link(position) = 0;
      if (before != 0 && before >= live_from_) link(before) = position;
    }
  }
  ++next_plan_;
}

void Window::drop(Batch* batch) {
  put_back(*batch);
  for (RowHandle r : batch->handles) {
    // Known for this batch alone: neither resident nor used inside the window.
    if (!is_whole(r) && rows_[r].slot == kNoSlot && rows_[r].mark < base()) rows_.erase(r);
  }
}

// As if the batch had never had positions: the next one begins where it began.
void Window::put_back(const Batch& batch) {
  for (size_t u = 0; u < batch.handles.size(); ++u) {
    const RowHandle r = batch.handles[u];
    prefetch_row(rows_, batch.handles, u);
    if (is_whole(r)) {
      whole_marks_[whole_slot(r)] = 0;
    } else {
      rows_[r].mark = were_marked_[u];
    }
  }
  next_position_ = batch.base;
}

size_t Window::bytes() const {
  size_t bytes = (chain_.size() + were_marked_.capacity()) * 4 + whole_marks_.bytes();
  for (const Batch& b : batches_) bytes += b.bytes();
  return bytes;
}

}  // namespace te
