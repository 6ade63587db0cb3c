// Keys of rows as the store has them: 4-byte table key, 8-byte big-endian row id.
#pragma once

#include <rocksdb/slice.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "store/store_error.h"

namespace te {

constexpr size_t kKeyBytes = 12;

struct SortedKey {
  uint64_t row;    // bytes 4..11, as a number
  uint32_t table;  // bytes 0..3, as a number
  uint32_t index;  // position in the caller's batch

  bool operator<(const SortedKey& other) const {
    if (table != other.table) return table < other.table;
    if (row != other.row) return row < other.row;
    return index < other.index;
  }
};

inline SortedKey key_at(const uint8_t* key, size_t index) {
  uint32_t table;
  uint64_t row;
  std::memcpy(&table, key, sizeof(table));
  std::memcpy(&row, key + sizeof(table), sizeof(row));
  return {__builtin_bswap64(row), __builtin_bswap32(table), static_cast<uint32_t>(index)};
}

// The batch's positions in key order; equal keys keep their order.
inline std::vector<SortedKey> sorted_keys(const uint8_t* keys, size_t n) {
  if (n > std::numeric_limits<uint32_t>::max()) {
    throw StoreException(ErrorKind::kConfig, "a batch of " + std::to_string(n) +
                                                 " keys is too large; the limit is 2^32 - 1");
  }
  std::vector<SortedKey> sorted(n);
  for (size_t i = 0; i < n; ++i) sorted[i] = key_at(keys + i * kKeyBytes, i);
  if (!std::is_sorted(sorted.begin(), sorted.end())) std::sort(sorted.begin(), sorted.end());
  return sorted;
}

inline rocksdb::Slice slice_of(const uint8_t* keys, size_t index) {
  return {reinterpret_cast<const char*>(keys + index * kKeyBytes), kKeyBytes};
}

inline std::string hex(const uint8_t* key) { return slice_of(key, 0).ToString(true); }

}  // namespace te
