// The hash of the indexes, over ids as tables have them: next to each other, far apart, negative,
// in few bits. No place of an index may get many more than chance gives it.
#include <algorithm>
#include <vector>

#include "core/row_hash.h"
#include "tests/stress.h"

namespace te::stress {
namespace {

constexpr int64_t kNumIds = 1 << 16;
constexpr uint32_t kPlaces = 1 << 16;
// Of 65536 places with one id each on average, the fullest has 8 or 9 by chance; 16 in one of 10^9.
constexpr uint32_t kMostInOne = 16;

// Whether ids first + i * step, and tables that change with them, spread over all bits.
void check_spread(uint64_t first, uint64_t step, uint32_t table_step) {
  for (int shift : {0, 16, 32, 48}) {
    std::vector<uint32_t> places(kPlaces);
    for (int64_t i = 0; i < kNumIds; ++i) {
      const auto n = static_cast<uint64_t>(i);
      const uint64_t h = secret_hash(static_cast<uint32_t>(n) * table_step, first + n * step);
      ++places[(h >> shift) % kPlaces];
    }
    const uint32_t most = *std::max_element(places.begin(), places.end());
    TE_EXPECT(most <= kMostInOne, "%u ids share a place: first %llx, step %llx, tables %u, bit %d",
              most, static_cast<unsigned long long>(first), static_cast<unsigned long long>(step),
              table_step, shift);
  }
}

}  // namespace

void stress_hash(const Run& run) {
  for (Rounds rounds(run); rounds.next();) {
    Random random(rounds.seed());
    const auto first = static_cast<uint64_t>(random.below(INT64_MAX));
    for (int bit = 0; bit <= 48; bit += 4) {
      check_spread(first, uint64_t{1} << bit, 0);
      check_spread(0, uint64_t{1} << bit, 0);
    }
    check_spread(first, static_cast<uint64_t>(random.below(INT64_MAX)) | 1, 0);
    check_spread(first, 1, 1);  // the table changes, too
    check_spread(static_cast<uint64_t>(-kNumIds / 2), 1, 0);
  }
}

}  // namespace te::stress
