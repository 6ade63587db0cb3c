#include "residency/ids.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "core/thread_pool.h"
#include "residency/row_table.h"

namespace te {

void require_countable(const std::vector<Segment>& segments) {
  const int64_t n = num_ids_of(segments);
  if (n > INT32_MAX) {
    throw std::invalid_argument("a batch of " + std::to_string(n) +
                                " ids of one pool; at most 2147483647 can be planned at once");
  }
}

int64_t first_bad_id(const int64_t* ids, int64_t n, int64_t num_rows, int num_threads) {
  if (num_rows < 0) return -1;
  constexpr int64_t kPiece = 16384;  // a worker wakes sooner than one thread reads two of them
  if (num_threads > 1 && n > 2 * kPiece) {
    std::atomic<bool> bad = false;
    parallel_for((n + kPiece - 1) / kPiece, num_threads, [&](int64_t p) {
      const int64_t begin = p * kPiece;
      if (first_bad_id(ids + begin, std::min(kPiece, n - begin), num_rows) >= 0) bad = true;
    });
    if (!bad) return -1;
  }
  const auto excess = [&](int64_t i) {  // negative: ids[i] is outside
    return static_cast<int64_t>(static_cast<uint64_t>(num_rows - 1) -
                                static_cast<uint64_t>(ids[i])) |
           ids[i];
  };
  // Blocks without a branch per id: the common answer is that all are good.
  for (int64_t begin = 0; begin < n; begin += 1024) {
    const int64_t end = std::min(n, begin + 1024);
    int64_t bad = 0;
    for (int64_t i = begin; i < end; ++i) bad |= excess(i);
    for (int64_t i = begin; bad < 0 && i < end; ++i) {
      if (excess(i) < 0) return i;
    }
  }
  return -1;
}

bool are_bag_bounds(const int64_t* bounds, int64_t n, int64_t num_ids) {
  if (n < 1 || bounds[0] != 0 || bounds[n - 1] != num_ids) return false;
  int64_t bad = 0;  // negative: a bound below 0, above num_ids, or below the one before it
  for (int64_t i = 1; i < n && bad >= 0; i += 1024) {
    const int64_t end = std::min(n, i + 1024);
    for (int64_t k = i; k < end; ++k) {
      const uint64_t bound = static_cast<uint64_t>(bounds[k]);
      bad |= static_cast<int64_t>(bound | (static_cast<uint64_t>(num_ids) - bound) |
                                  (bound - static_cast<uint64_t>(bounds[k - 1])));
    }
  }
  return bad >= 0;
}

Rows name_missing(const std::vector<Segment>& segments, int32_t* slots) {
  Rows rows;
  const int64_t n = num_ids_of(segments);
  const int64_t missing = std::count(slots, slots + n, kNoSlot);
  if (missing == 0) return rows;
  // Open addressing over at most half-full entries: 1 + the index of a row, or 0.
  size_t size = 1024;
  while (size < static_cast<size_t>(missing) * 2) size *= 2;
  std::vector<int32_t> index(size, 0);
  for (const Segment& s : segments) {
    const uint16_t table = static_cast<uint16_t>(s.table);
    for (int64_t i = 0; i < s.num_ids; ++i) {
      if (slots[i] != kNoSlot) continue;
      const int64_t id = s.ids[i];
      size_t at = RowTable::hash(table, id) & (size - 1);
      for (;; at = (at + 1) & (size - 1)) {
        const int32_t m = index[at] - 1;
        if (m < 0) {
          rows.tables.push_back(table);
          rows.keys.push_back(id);
          index[at] = static_cast<int32_t>(rows.keys.size());
          break;
        }
        const size_t u = static_cast<size_t>(m);
        if (rows.keys[u] == id && rows.tables[u] == table) break;
      }
      slots[i] = -index[at];  // -1 - m
    }
    slots += s.num_ids;
  }
  return rows;
}

bool plan_matches(const StepPlan& plan, const std::vector<Segment>& segments) {
  size_t n = 0;
  for (const Segment& s : segments) n += static_cast<size_t>(s.num_ids);
  if (n != plan.inverse.size()) return false;
  const int32_t* inverse = plan.inverse.data();
  for (const Segment& s : segments) {
    bool same = true;
    for (int64_t i = 0; i < s.num_ids; ++i) {
      const int32_t u = inverse[i];
      same &= plan.keys[u] == s.ids[i] && plan.tables[u] == s.table;
    }
    if (!same) return false;
    inverse += s.num_ids;
  }
  return true;
}

}  // namespace te
