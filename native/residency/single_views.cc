// What can be asked of a single planner.
#include <algorithm>

#include "residency/single_planner.h"

namespace te {

void SinglePlanner::find(int32_t table, const int64_t* ids, int64_t n, int32_t* slots) {
  std::lock_guard<std::mutex> lock(mutex_);
  const TableShape& shape = options_.tables[static_cast<size_t>(table)];
  for (int64_t i = 0; i < n; ++i) {
    if (shape.first_slot >= 0) {
      const int64_t slot = shape.first_slot + ids[i];
      const bool resident = whole_.is_resident(static_cast<uint32_t>(slot));
      slots[i] = resident ? static_cast<int32_t>(slot) : kNoSlot;
    } else {
      const uint32_t t = static_cast<uint32_t>(table);
      const RowHandle r = rows_.find(RowTable::hash(t, ids[i]), t, ids[i]);
      slots[i] = r == kNoRow ? kNoSlot : rows_[r].slot;
    }
  }
}

ResidentRows SinglePlanner::dirty_rows() {
  std::lock_guard<std::mutex> lock(mutex_);
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
