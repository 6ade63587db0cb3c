// Hashes of a row's key, for indexes in memory.
//
// Keys come from outside, and who knows a hash can send ids that all share one place of an index.
// This one depends on numbers that are drawn when the process starts. Nothing that can be seen from
// outside may depend on it: no plan, no order, nothing that is stored.
#pragma once

#include <cstdint>

namespace te {

struct HashSecret {
  uint64_t v[4];
};

extern const HashSecret kHashSecret;

// The halves of a 128-bit product, folded: each bit depends on all bits of both.
inline uint64_t fold(uint64_t a, uint64_t b) {
  __extension__ typedef unsigned __int128 Wide;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// In the manner of wyhash, with this process's secret.
inline uint64_t secret_hash(uint32_t table, uint64_t row) {
  const HashSecret& s = kHashSecret;
  return fold(fold(row ^ s.v[0], table ^ s.v[1]) ^ s.v[2], s.v[3]);
}

}  // namespace te
