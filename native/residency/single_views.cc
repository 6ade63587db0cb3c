// What can be asked of a single planner.
#include <algorithm>
#include <atomic>

#include "core/thread_pool.h"
#include "residency/single_planner.h"

namespace te {
namespace {

constexpr int64_t kPieceIds = 8192;  // that a thread takes at a time

// fn(ids, occurrences before them) for pieces of the batch, on several threads where it is large.
template <typename Fn>
void for_pieces(const std::vector<Segment>& segments, int num_threads, const Fn& fn) {
  struct Piece {
    Segment ids;
    int64_t begin;
  };
  std::vector<Piece> pieces;
  int64_t before = 0;
  for (const Segment& s : segments) {
    for (int64_t i = 0; i < s.num_ids; i += kPieceIds) {
      pieces.push_back({{s.table, s.ids + i, std::min(kPieceIds, s.num_ids - i)}, before + i});
    }
    before += s.num_ids;
  }
  parallel_for(static_cast<int64_t>(pieces.size()), before > kPieceIds ? num_threads : 1,
               [&](int64_t p) {
                 const Piece& piece = pieces[static_cast<size_t>(p)];
                 fn(piece.ids, piece.begin);
               });
}

}  // namespace

// Both read only what the lock guards, so that several threads may do it for the one that holds it.

void SinglePlanner::find(const std::vector<Segment>& segments, int32_t* slots, int num_threads) {
  require_countable(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_rows();
  for_pieces(segments, num_threads, [&](const Segment& ids, int64_t begin) {
    if (options_.tables[static_cast<size_t>(ids.table)].first_slot >= 0) {
      find_whole(ids, slots + begin);
    } else {
      find_cached(ids, slots + begin);
    }
  });
}

bool SinglePlanner::holds_for_good(const std::vector<Segment>& segments, int num_threads) {
  for (const Segment& s : segments) {
    if (options_.tables[static_cast<size_t>(s.table)].first_slot < 0) return false;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_rows();
  if (whole_.all_resident()) return true;
  std::atomic<bool> missing = false;
  for_pieces(segments, num_threads, [&](const Segment& s, int64_t) {
    if (missing.load(std::memory_order_relaxed)) return;
    const int64_t first = options_.tables[static_cast<size_t>(s.table)].first_slot;
    bool held = true;
    for (int64_t i = 0; i < s.num_ids; ++i) {
      held &= whole_.is_resident(static_cast<uint32_t>(first + s.ids[i]));
    }
    if (!held) missing = true;
  });
  return !missing;
}

void SinglePlanner::find_whole(const Segment& s, int32_t* slots) const {
  const int64_t first = options_.tables[static_cast<size_t>(s.table)].first_slot;
  if (whole_.all_resident()) {
    for (int64_t i = 0; i < s.num_ids; ++i) slots[i] = static_cast<int32_t>(first + s.ids[i]);
    return;
  }
  constexpr int64_t kAhead = 64;
  for (int64_t i = 0; i < s.num_ids; ++i) {
    if (i + kAhead < s.num_ids) whole_.prefetch(static_cast<uint32_t>(first + s.ids[i + kAhead]));
    const uint32_t slot = static_cast<uint32_t>(first + s.ids[i]);
    slots[i] = whole_.is_resident(slot) ? static_cast<int32_t>(slot) : kNoSlot;
  }
}

void SinglePlanner::find_cached(const Segment& s, int32_t* slots) const {
  constexpr int64_t kBlock = 32;  // ids whose cache misses overlap
  const uint32_t table = static_cast<uint32_t>(s.table);
  uint32_t hashes[kBlock];
  for (int64_t begin = 0; begin < s.num_ids; begin += kBlock) {
    const int64_t n = std::min(kBlock, s.num_ids - begin);
    for (int64_t i = 0; i < n; ++i) {
      hashes[i] = RowTable::hash(table, s.ids[begin + i]);
      rows_.prefetch_index(hashes[i]);
    }
    for (int64_t i = 0; i < n; ++i) rows_.prefetch_row(hashes[i]);
    for (int64_t i = 0; i < n; ++i) {
      const RowHandle r = rows_.find(hashes[i], table, s.ids[begin + i]);
      slots[begin + i] = r == kNoRow ? kNoSlot : rows_[r].slot;
    }
  }
}

ResidentRows SinglePlanner::dirty_rows() {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_rows();
  held_.note_updates();
  ResidentRows out;
  const auto add = [&out](size_t table, int64_t id, int32_t slot) {
    out.tables.push_back(static_cast<uint16_t>(table));
    out.keys.push_back(id);
    out.slots.push_back(slot);
  };
  whole_.for_each_dirty(add);
  rows_.for_each([&](const Row& row) {
    if (row.slot >= 0 && row.dirty) add(row.table, row.id(), row.slot);
  });
  return out;
}

void SinglePlanner::mark_clean() {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_rows();
  std::vector<TableCounts>& counts = upper_.counts();
  whole_.mark_clean([&counts](size_t table) { ++counts[table].written_back; });
  rows_.for_each([&](Row& row) {
    if (row.slot < 0 || !row.dirty) return;
    if (upper_.holds(row)) {
      ++counts[row.table].written_back;
      row.dirty = 0;
    } else {
      upper_.lower()->mark_clean(&row);
    }
  });
}

std::vector<TableCounts> SinglePlanner::counts(
    const std::optional<std::vector<int64_t>>& used) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<TableCounts> out = upper_.counts();
  if (!used) return out;
  held_.for_each([&](const HeldPlans::Held& held) {
    if (held.released) return;
    if (std::find(used->begin(), used->end(), held.number) != used->end()) return;
    for (size_t t = 0; t < out.size(); ++t) out[t].take_back(held.uses[t]);
  });
  return out;
}

std::vector<TableCounts> SinglePlanner::lower_counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return upper_.lower() ? upper_.lower()->counts() : std::vector<TableCounts>();
}

int64_t SinglePlanner::num_lower_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return upper_.lower() ? upper_.lower()->num_resident() : 0;
}

int64_t SinglePlanner::window_size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return window_.size();
}

int64_t SinglePlanner::num_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return whole_.num_resident() + upper_.num_resident();
}

bool SinglePlanner::all_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return options_.cached_slots == 0 && whole_.all_resident();
}

int64_t SinglePlanner::overhead_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(rows_.bytes() + whole_.bytes() + upper_.bytes() + window_.bytes() +
                              held_.bytes());
}

}  // namespace te
