#include "residency/planner.h"

#include "residency/partitioned_planner.h"
#include "residency/single_planner.h"

namespace te {

std::unique_ptr<Planner> make_planner(const PlannerOptions& options, int num_partitions,
                                      int num_threads) {
  if (num_partitions == 1) return std::make_unique<SinglePlanner>(options);
  return std::make_unique<PartitionedPlanner>(options, num_partitions, num_threads);
}

}  // namespace te
