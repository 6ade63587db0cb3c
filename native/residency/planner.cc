#include "residency/planner.h"

#include <stdexcept>
#include <string>

#include "residency/partitioned_planner.h"
#include "residency/single_planner.h"

namespace te {
namespace {

constexpr size_t kMaxTables = 1u << 16;  // a row's table is kept in 16 bits
constexpr int64_t kMaxSlots = INT32_MAX;

void require_countable(const PlannerOptions& o) {
  if (o.tables.size() > kMaxTables) {
    throw std::invalid_argument(std::to_string(o.tables.size()) +
                                " tables in one pool; at most 65536 can share one");
  }
  const int64_t parts[] = {o.whole_slots, o.cached_slots, o.overflow_slots, o.lower_slots};
  int64_t num_slots = 0;
  for (int64_t n : parts) {
    if (n < 0 || n > kMaxSlots - num_slots) {
      throw std::invalid_argument("a pool has at most 2147483647 slots, and none negative");
    }
    num_slots += n;
  }
}

}  // namespace

std::unique_ptr<Planner> make_planner(const PlannerOptions& options, int num_partitions,
                                      int num_threads) {
  require_countable(options);
  if (num_partitions == 1) return std::make_unique<SinglePlanner>(options);
  return std::make_unique<PartitionedPlanner>(options, num_partitions, num_threads);
}

}  // namespace te
