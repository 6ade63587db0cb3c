// The tables that are in the tier entirely: row `id` has slot `first_slot + id`, for good.
//
// No hash, no policy, no eviction: a byte per slot says whether the row has been used and whether
// it differs from the tier below. Not thread-safe: the planner holds its lock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/check.h"
#include "core/virtual_array.h"
#include "residency/batch.h"
#include "residency/planner.h"

namespace te {

class WholeTables {
 public:
  explicit WholeTables(const PlannerOptions& options)
      : tables_(options.tables),
        num_slots_(options.whole_slots),
        is_everything_(std::all_of(tables_.begin(), tables_.end(),
                                   [](const TableShape& t) { return t.first_slot >= 0; })),
        flags_(static_cast<size_t>(options.whole_slots)) {}

  // Every table of the pool is whole: each handle is a slot.
  bool is_everything() const { return is_everything_; }
  bool all_resident() const { return num_resident_ == num_slots_; }
  bool all_dirty() const { return num_dirty_ == num_slots_; }
  int64_t num_resident() const { return num_resident_; }

  bool is_resident(uint32_t slot) const { return (flags_[slot] & kResident) != 0; }
  // The row is used for the first time. REQUIRES: !is_resident(slot).
  void set_resident(uint32_t slot) {
    TE_CHECK(!is_resident(slot), "the row is new");
    flags_[slot] = kResident;
    ++num_resident_;
  }
  void set_dirty(uint32_t slot) {
    TE_CHECK(is_resident(slot), "only a resident row changes");
    uint8_t& flags = flags_[slot];
    num_dirty_ += (flags & kDirty) == 0;
    flags |= kDirty;
  }
  // Fetches what the calls above will need.
  void prefetch(uint32_t slot) const { __builtin_prefetch(&flags_[slot], 0, 2); }

  // Calls fn(table, row id, slot) for every dirty row, in the order of tables and ids.
  template <typename Fn>
  void for_each_dirty(const Fn& fn) const {
    for (size_t t = 0; t < tables_.size(); ++t) {
      const TableShape& shape = tables_[t];
      if (shape.first_slot < 0) continue;
      for (int64_t id = 0; id < shape.num_rows; ++id) {
        const int64_t slot = shape.first_slot + id;
        if (flags_[static_cast<size_t>(slot)] & kDirty) fn(t, id, static_cast<int32_t>(slot));
      }
    }
  }

  // The dirty rows have been written back; calls note_written(table) for each.
  template <typename Fn>
  void mark_clean(const Fn& note_written) {
    for_each_dirty([&](size_t table, int64_t, int32_t slot) {
      flags_[static_cast<size_t>(slot)] = kResident;
      note_written(table);
    });
    num_dirty_ = 0;
  }

  size_t bytes() const { return flags_.bytes(); }

 private:
  static constexpr uint8_t kResident = 1;
  static constexpr uint8_t kDirty = 2;

  const std::vector<TableShape> tables_;
  const int64_t num_slots_;
  const bool is_everything_;
  VirtualArray<uint8_t> flags_;  // by slot
  int64_t num_resident_ = 0;
  int64_t num_dirty_ = 0;
};

// For loops over a batch's handles: fetches the flag that they need a little later.
inline void prefetch_flag(const WholeTables& whole, const PlainVector<RowHandle>& handles,
                          size_t u) {
  constexpr size_t kAhead = 64;
  if (u + kAhead >= handles.size()) return;
  const RowHandle r = handles[u + kAhead];
  if (is_whole(r)) whole.prefetch(whole_slot(r));
}

}  // namespace te
