// Every row that the planner knows (resident, or used inside the window), found by its key.
//
// A row is named by a 32-bit handle that stays valid until `erase`. Lookups go through an
// open-addressing index of (handle, fingerprint) pairs, 8 bytes each; the rows themselves are 28
// bytes. A Row& is good until the next `insert` or `allocate_sentinel` (a policy may call it): the
// rows may move. Not thread-safe: the planner holds its lock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "core/check.h"
#include "core/row_hash.h"
#include "core/virtual_array.h"
#include "residency/step_plan.h"

namespace te {

using RowHandle = uint32_t;
constexpr RowHandle kNoRow = 0xFFFFFFFFu;
constexpr size_t kMaxRows = 0x80000000u;  // the bit beyond says something else (batch.h)
constexpr uint32_t kMaxPins = (1u << 12) - 1;

struct Row {
  uint32_t id_low;
  uint32_t id_high;
  uint32_t table : 16;
  uint32_t pins : 12;      // planned batches that hold the row in its slot
  uint32_t dirty : 1;      // differs from the tier below
  uint32_t listed : 1;     // the policy may evict it
  uint32_t scheduled : 1;  // listed under a known next use
  int32_t slot;            // kNoSlot: not resident, but used inside the window
  uint32_t mark;           // position of the row's last pushed occurrence (see Window)
  RowHandle prev;          // the policy's list
  RowHandle next;

  int64_t id() const { return static_cast<int64_t>((uint64_t{id_high} << 32) | uint64_t{id_low}); }
};
static_assert(sizeof(Row) == 28, "the DDR overhead budget counts on it");

class RowTable {
 public:
  // `expected_rows` only shapes how the index grows.
  explicit RowTable(size_t expected_rows) : comfortable_entries_(expected_rows * 21 / 16) {
    grow(1024);
  }

  // Of the index; another in every process (core/row_hash.h).
  static uint32_t hash(uint32_t table, int64_t id) {
    return static_cast<uint32_t>(secret_hash(table, static_cast<uint64_t>(id)) >> 32);
  }

  // The same in every process: what partitions and policies decide depends on it.
  static uint32_t fixed_hash(uint32_t table, int64_t id) {
    uint64_t x = static_cast<uint64_t>(id) + uint64_t{table} * 0x9E3779B97F4A7C15u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return static_cast<uint32_t>(x >> 32);
  }

  void prefetch_index(uint32_t h) const { __builtin_prefetch(&index_[home(h)]); }

  // Prefetches the row that `find` will most likely compare first.
  void prefetch_row(uint32_t h) const {
    const Entry e = index_[home(h)];
    if (e.handle != kNoRow) __builtin_prefetch(&rows_[e.handle], 1);
  }

  void prefetch(RowHandle r) const { __builtin_prefetch(&rows_[r], 1); }

  RowHandle find(uint32_t h, uint32_t table, int64_t id) const {
    for (size_t i = home(h);; i = after(i)) {
      const Entry e = index_[i];
      if (e.handle == kNoRow) return kNoRow;
      if (e.fingerprint == h && matches(rows_[e.handle], table, id)) return e.handle;
    }
  }

  // Adds a row that is not there. REQUIRES: find(h, table, id) == kNoRow.
  RowHandle insert(uint32_t h, uint32_t table, int64_t id) {
    TE_CHECK(find(h, table, id) == kNoRow, "the row is not there");
    if ((num_keys_ + 1) * 20 > num_entries_ * 17) grow(next_size());
    const RowHandle r = allocate();
    Row& row = rows_[r];
    row.id_low = static_cast<uint32_t>(static_cast<uint64_t>(id));
    row.id_high = static_cast<uint32_t>(static_cast<uint64_t>(id) >> 32);
    row.table = table & 0xFFFFu;
    place({r, h});
    ++num_keys_;
    return r;
  }

  // Forgets a row; its handle may be given out again. REQUIRES: no list holds it.
  void erase(RowHandle r) {
    TE_CHECK(rows_[r].slot == kNoSlot && rows_[r].pins == 0, "the row is in no tier");
    TE_CHECK(rows_[r].prev == r && rows_[r].next == r, "no list holds the row");
    size_t hole = locate(r);
    // Backward-shift deletion: no tombstones, so probe lengths never degrade.
    for (size_t i = after(hole);; i = after(i)) {
      const Entry e = index_[i];
      if (e.handle == kNoRow) break;
      const size_t want = home(e.fingerprint);
      const bool may_move = hole <= i ? (want <= hole || want > i) : (want <= hole && want > i);
      if (may_move) {
        index_[hole] = e;
        hole = i;
      }
    }
    index_[hole] = {kNoRow, 0};
    --num_keys_;
    release(r);
  }

  // A row outside the index, for list heads.
  RowHandle allocate_sentinel() { return allocate(); }
  void release(RowHandle r) {
    rows_[r].slot = kFree;
    free_.push_back(r);
  }

  Row& operator[](RowHandle r) { return rows_[r]; }
  const Row& operator[](RowHandle r) const { return rows_[r]; }

  // Calls fn(row) for every known row, in handle order; list heads have no slot.
  template <typename Fn>
  void for_each(const Fn& fn) {
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i].slot != kFree) fn(rows_[i]);
    }
  }
  template <typename Fn>
  void for_each(const Fn& fn) const {
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i].slot != kFree) fn(rows_[i]);
    }
  }

  size_t bytes() const {
    return rows_.bytes() + num_entries_ * sizeof(Entry) + free_.capacity() * sizeof(RowHandle);
  }

 private:
  static constexpr int32_t kFree = -2;
  struct Entry {
    RowHandle handle;
    uint32_t fingerprint;
  };

  // Multiply-shift instead of a mask: the index may have any size, so it need not double.
  size_t home(uint32_t h) const { return (uint64_t{h} * num_entries_) >> 32; }
  size_t after(size_t i) const { return i + 1 == num_entries_ ? 0 : i + 1; }
  static bool matches(const Row& row, uint32_t table, int64_t id) {
    return row.id() == id && row.table == table;
  }

  RowHandle allocate() {
    RowHandle r;
    if (free_.empty()) {
      if (rows_.size() == kMaxRows) throw std::overflow_error("more than 2^31 rows are known");
      r = static_cast<RowHandle>(rows_.size());
      rows_.push_back(Row{});
    } else {
      r = free_.back();
      free_.pop_back();
      rows_[r] = Row{};
    }
    rows_[r].slot = kNoSlot;
    rows_[r].prev = rows_[r].next = r;
    return r;
  }

  void place(Entry e) {
    size_t i = home(e.fingerprint);
    while (index_[i].handle != kNoRow) i = after(i);
    index_[i] = e;
  }

  size_t locate(RowHandle r) const {
    const uint32_t h = hash(rows_[r].table, rows_[r].id());
    size_t i = home(h);
    while (index_[i].handle != r) i = after(i);
    return i;
  }

  // In large steps up to the expected size, in small ones beyond it: there memory counts.
  size_t next_size() const {
    if (num_entries_ >= comfortable_entries_) return num_entries_ + num_entries_ / 8;
    return std::min(num_entries_ + num_entries_ / 2, comfortable_entries_ + 1);
  }

  void grow(size_t num_entries) {
    std::vector<Entry> old(num_entries, Entry{kNoRow, 0});
    old.swap(index_);
    num_entries_ = num_entries;
    for (const Entry& e : old) {
      if (e.handle != kNoRow) place(e);
    }
  }

  PagedVector<Row> rows_;
  std::vector<RowHandle> free_;
  std::vector<Entry> index_;
  const size_t comfortable_entries_;
  size_t num_entries_ = 0;
  size_t num_keys_ = 0;
};

// A circular doubly linked list through Row::prev / Row::next, headed by a sentinel row.
// Unlinking needs no knowledge of the list.
class RowList {
 public:
  explicit RowList(RowTable* rows) : rows_(rows), head_(rows->allocate_sentinel()) {}

  bool empty() const { return (*rows_)[head_].next == head_; }
  RowHandle front() const { return (*rows_)[head_].next; }
  RowHandle sentinel() const { return head_; }

  // REQUIRES: no list holds the row.
  void push_back(RowHandle r) {
    TE_CHECK((*rows_)[r].next == r && (*rows_)[r].prev == r, "no list holds the row");
    const RowHandle last = (*rows_)[head_].prev;
    (*rows_)[r].prev = last;
    (*rows_)[r].next = head_;
    (*rows_)[last].next = r;
    (*rows_)[head_].prev = r;
  }

  // Moves the rows of `other` in front of this list's.
  void take_front(RowList* other) {
    if (other->empty()) return;
    const RowHandle first = (*rows_)[other->head_].next;
    const RowHandle last = (*rows_)[other->head_].prev;
    (*rows_)[other->head_].prev = (*rows_)[other->head_].next = other->head_;
    const RowHandle next = (*rows_)[head_].next;
    (*rows_)[head_].next = first;
    (*rows_)[first].prev = head_;
    (*rows_)[last].next = next;
    (*rows_)[next].prev = last;
  }

  // REQUIRES: a list holds the row.
  static void unlink(RowTable* rows, RowHandle r) {
    TE_CHECK((*rows)[r].next != r, "a list holds the row");
    Row& row = (*rows)[r];
    (*rows)[row.prev].next = row.next;
    (*rows)[row.next].prev = row.prev;
    row.prev = row.next = r;
  }

 private:
  RowTable* rows_;
  RowHandle head_;
};

}  // namespace te
