// A batch between `push` and its plan's release: its unique rows, named by handles.
//
// Legend: N occurrences in lookup order, U unique rows in order of first occurrence.
#pragma once

#include <cstdint>
#include <vector>

#include "core/plain_vector.h"
#include "residency/counts.h"
#include "residency/row_table.h"

namespace te {

// Rows of whole tables are in no RowTable: their handle is their slot with this bit.
constexpr RowHandle kWhole = 0x80000000u;
constexpr bool is_whole(RowHandle r) { return (r & kWhole) != 0; }
constexpr uint32_t whole_slot(RowHandle r) { return r & ~kWhole; }

struct Batch {
  uint32_t base = 0;               // position of its first unique row; 0: its rows have none
  PlainVector<RowHandle> handles;  // (U)
  PlainVector<uint16_t> tables;    // (U); empty in a pool of one table
  PlainVector<int32_t> inverse;    // (N)
  std::vector<UseCounts> uses;     // per table
  int32_t num_unique = 0;

  void add(RowHandle row, int32_t table) {
    handles[static_cast<size_t>(num_unique)] = row;
    if (!tables.empty()) tables[static_cast<size_t>(num_unique)] = static_cast<uint16_t>(table);
    ++num_unique;
  }
  uint16_t table(size_t u) const { return tables.empty() ? uint16_t{0} : tables[u]; }

  // Gives memory back, once all rows are known: until then there is room for U = N.
  void trim() {
    const size_t n = static_cast<size_t>(num_unique);
    handles.resize(n);
    handles.shrink_to_fit();
    if (tables.empty()) return;
    tables.resize(n);
    tables.shrink_to_fit();
  }

  size_t bytes() const {
    return (handles.capacity() + inverse.capacity()) * 4 + tables.capacity() * 2;
  }
};

// For loops over a batch's handles: fetches the row that they need a little later.
inline void prefetch_row(const RowTable& rows, const PlainVector<RowHandle>& handles, size_t u) {
  constexpr size_t kAhead = 16;
  if (u + kAhead >= handles.size()) return;
  const RowHandle r = handles[u + kAhead];
  if (!is_whole(r)) rows.prefetch(r);
}

}  // namespace te
