// One thread pushes, plans and releases, as the staging thread does; others look on meanwhile. Some
// pools are partitioned, with batches that are worth several threads.
//
// Every plan is compared with a model of which row is in which slot, and with the plan of a twin: a
// planner that gets the same calls, but not the batches that find no room. So these must have
// changed nothing.
#include <atomic>
#include <iterator>

#include "tests/planner_calls.h"

namespace te::stress {
namespace {

constexpr int kNumObservers = 2;
constexpr int kNumThreads = 3;
constexpr int64_t kOperations = 1500;
constexpr int64_t kLargeOperations = 100;
constexpr int64_t kMaxIdsPerTable = 24;
constexpr int64_t kMaxIdsPerLargeTable = 12000;
constexpr const char* kPolicies[] = {"lookahead", "lookahead:s3fifo", "lru", "lfu", "s3fifo"};

PlannerSetup setup_of(Random* random) {
  PlannerSetup s;
  s.depth = random->below(4);
  s.num_threads = kNumThreads;
  s.num_operations = kOperations;
  s.max_ids = kMaxIdsPerTable;
  s.options.policy = kPolicies[random->below(std::size(kPolicies))];
  s.options.tables = {{-1, -1}, {kIdsOfTable, -1}};
  if (random->one_in(2)) {
    s.options.tables.push_back({kNumWholeRows, 0});
    s.options.whole_slots = kNumWholeRows;
  }
  s.options.cached_slots = random->between(40, 200);
  s.options.overflow_slots = (kMaxHeld + s.depth + 1) * 2 * kMaxIdsPerTable;
  if (random->one_in(2)) s.options.lower_slots = random->between(8, 150);
  s.some_unused = random->one_in(2);
  if (random->one_in(2)) {
    s.num_partitions = random->one_in(2) ? 2 : 8;
    s.num_operations = kLargeOperations;
    s.max_ids = kMaxIdsPerLargeTable;
    s.options.overflow_slots = s.num_partitions * (kMaxHeld + s.depth + 1) * 2 * kIdsOfTable;
  }
  return s;
}

void observe(const PlannerSetup& setup, Planner* planner, Random random,
             const std::atomic<bool>* over) {
  const int64_t num_slots = setup.num_slots();
  const int64_t all_slots = num_slots + setup.options.lower_slots;
  std::vector<TableCounts> before(setup.options.tables.size());
  while (!over->load(std::memory_order_relaxed)) {
    const auto table = static_cast<uint16_t>(random.below(static_cast<int64_t>(before.size())));
    const bool many = random.one_in(16);  // as an evaluation's batch: worth several threads
    std::vector<int64_t> ids;
    for (int i = 0; i < (many ? 10000 : 16); ++i) ids.push_back(id_in(setup, table, &random));
    std::vector<int32_t> slots(ids.size());
    planner->find({{table, ids.data(), static_cast<int64_t>(ids.size())}}, slots.data(),
                  many ? kNumThreads : 1);
    for (size_t i = 0; i < ids.size(); ++i) {
      TE_EXPECT(slots[i] >= kNoSlot && slots[i] < all_slots, "slot %d does not exist", slots[i]);
      TE_EXPECT(table != 2 || slots[i] == kNoSlot || slots[i] == static_cast<int32_t>(ids[i]),
                "a whole table's row is elsewhere");
    }
    const std::vector<TableCounts> now = planner->counts({});
    for (size_t t = 0; t < now.size(); ++t) {
      const bool grows = now[t].lookups >= before[t].lookups && now[t].misses >= before[t].misses;
      TE_EXPECT((grows || setup.some_unused) && now[t].evicted >= before[t].evicted &&
                    now[t].unique <= now[t].lookups && now[t].misses <= now[t].unique,
                "counts that cannot be");
    }
    before = now;
    const int64_t waiting = planner->window_size();
    TE_EXPECT(waiting >= 0 && waiting <= kMaxWaiting, "%lld batches wait",
              static_cast<long long>(waiting));
    const int64_t resident = planner->num_resident();
    TE_EXPECT(resident >= 0 && resident <= num_slots, "%lld rows are resident",
              static_cast<long long>(resident));
    const int64_t below = planner->num_lower_resident();
    TE_EXPECT(below >= 0 && below <= setup.options.lower_slots, "%lld rows are below",
              static_cast<long long>(below));
    TE_EXPECT(planner->lower_counts().size() == (setup.options.lower_slots > 0 ? before.size() : 0),
              "counts of a tier that is not there");
    TE_EXPECT(planner->overhead_bytes() > 0, "no overhead");
    TE_EXPECT(!planner->all_resident(), "a pool with cached slots never has all rows");
  }
}

}  // namespace

void stress_planner(const Run& run) {
  for (Rounds rounds(run); rounds.next();) {
    Random random(rounds.seed());
    const PlannerSetup setup = setup_of(&random);
    const auto planner = make_planner(setup.options, setup.num_partitions, kNumThreads);
    std::atomic<bool> over{false};
    Threads observers;
    for (uint64_t o = 0; o < kNumObservers; ++o) {
      observers.start([&, o] { observe(setup, planner.get(), Random(~rounds.seed() - o), &over); });
    }
    PlannerModel model(setup, planner.get());
    stage(setup, &model, &random);
    over.store(true, std::memory_order_relaxed);
  }
}

}  // namespace te::stress
