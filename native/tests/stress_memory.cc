// Every allocation fails once, of every call that the engine makes: a call that throws has changed
// nothing, or later ones are refused with its cause. Nothing is read after it was freed, and no row
// is wrong.
//
// A round draws its calls from its seed and repeats them, with the first allocation failing, then
// the second, until the calls need no more.
#include <array>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <string>

#include "core/thread_pool.h"
#include "core/write_buffer.h"
#include "residency/replay.h"
#include "store/reader_pool.h"
#include "tests/failing_memory.h"
#include "tests/planner_calls.h"
#include "tests/training.h"

namespace te::stress {
namespace {

constexpr int kThreads = 3;
constexpr const char* kPolicies[] = {"lookahead", "lru", "lookahead:s3fifo", "lfu", "s3fifo"};

// Calls fn() with each allocation of its `during` blocks failing; returns how many there are.
template <typename Fn>
int64_t with_each_failing(bool for_good, const Fn& fn) {
  for (int64_t n = 1;; ++n) {
    FailingMemory::arm(n, for_good);
    fn();
    if (!FailingMemory::has_failed()) return n - 1;
  }
}

bool is_refused(const PlannerFailed& error) {
  return std::string(error.what()).find("bad_alloc") != std::string::npos;
}

template <typename Fn>
bool refuses(const Fn& fn) {
  try {
    fn();
  } catch (const PlannerFailed& error) {
    TE_EXPECT(is_refused(error), "refused without its cause: %s", error.what());
    return true;
  }
  return false;
}

// --- planners -----------------------------------------------------------------------------------

// Each call runs in failing memory, and again.
class ShortOfMemory final : public Planner {
  template <typename Fn>
  static auto twice(const Fn& fn) {
    return FailingMemory::twice(fn);
  }

 public:
  explicit ShortOfMemory(Planner* planner) : p_(*planner) {}

  void push(const std::vector<Segment>& s) override {
    twice([&] { p_.push(s); });
  }
  std::shared_ptr<StepPlan> plan(int64_t depth) override {
    return twice([&] { return p_.plan(depth); });
  }
  std::shared_ptr<StepPlan> plan_now(const std::vector<Segment>& s) override {
    return twice([&] { return p_.plan_now(s); });
  }
  void release(int64_t number, bool updated, bool used) override {
    twice([&] { p_.release(number, updated, used); });
  }
  void cancel() override {
    twice([&] { p_.cancel(); });
  }
  void find(const std::vector<Segment>& s, int32_t* slots, int num_threads) override {
    twice([&] { p_.find(s, slots, num_threads); });
  }
  bool holds_for_good(const std::vector<Segment>& s, int num_threads) override {
    return twice([&] { return p_.holds_for_good(s, num_threads); });
  }
  ResidentRows dirty_rows() override {
    return twice([&] { return p_.dirty_rows(); });
  }
  void mark_clean() override {
    twice([&] { p_.mark_clean(); });
  }
  void fail(const char* cause) override { p_.fail(cause); }
  std::vector<TableCounts> counts(const std::optional<std::vector<int64_t>>& used) const override {
    return twice([&] { return p_.counts(used); });
  }
  std::vector<TableCounts> lower_counts() const override {
    return twice([&] { return p_.lower_counts(); });
  }
  int64_t num_lower_resident() const override { return p_.num_lower_resident(); }
  int64_t window_size() const override { return p_.window_size(); }
  int64_t num_resident() const override { return p_.num_resident(); }
  bool all_resident() const override { return p_.all_resident(); }
  int64_t overhead_bytes() const override { return p_.overhead_bytes(); }
  int64_t first_lower_slot() const override { return p_.first_lower_slot(); }
  int num_partitions() const override { return p_.num_partitions(); }

 private:
  Planner& p_;
};

PlannerSetup small_setup(int num_partitions, Random* random) {
  PlannerSetup s;
  s.depth = random->below(3);
  s.max_ids = 9;
  s.num_partitions = num_partitions;
  s.some_unused = true;
  s.options.policy = kPolicies[random->below(std::size(kPolicies))];
  s.options.tables = {{-1, -1}, {kIdsOfTable, -1}};
  if (random->one_in(2)) {
    s.options.tables.push_back({kNumWholeRows, 0});
    s.options.whole_slots = kNumWholeRows;
  }
  s.options.cached_slots = 6 * num_partitions;
  s.options.overflow_slots = 100 * num_partitions;
  if (random->one_in(2)) s.options.lower_slots = 5 * num_partitions;
  return s;
}

void call_all(const PlannerSetup& setup, PlannerModel* model, Random* random) {
  for (int turn = 0; turn < 2; ++turn) {
    for (int i = 0; i < 4; ++i) model->push(batch_of(setup, random));
    model->plan();
    model->plan();
    model->look_up(batch_of(setup, random));
    model->release(0, true, true);
    model->plan_now(batch_of(setup, random));
    model->plan();
    model->release(0, true, false);
    model->write_dirty();
    model->check_counts();
    model->refuse(batch_of(setup, random), random);
    model->plan();
    model->push(batch_of(setup, random));
    if (turn == 0) model->cancel();
    while (model->num_held() > 0) model->release(0, !random->one_in(3), true);
  }
  model->look_up(batch_of(setup, random));
  model->check_counts();
}

// After a failed call: what can still be told is right, and all else is refused.
void check_refusals(const PlannerSetup& setup, const PlannerModel& model, Planner* planner) {
  const std::vector<int64_t> ids = {1, 2, 3};
  const std::vector<Segment> segments = {{1, ids.data(), 3}};
  for (int again = 0; again < 2; ++again) {
    TE_EXPECT(refuses([&] { planner->push(segments); }), "a batch entered a failed planner");
    TE_EXPECT(refuses([&] { planner->plan(setup.depth); }), "a failed planner plans");
    TE_EXPECT(refuses([&] { planner->plan_now(segments); }), "a failed planner plans at once");
    planner->cancel();
    planner->counts({});
    const bool knows = !refuses([&] { model.check_dirty(planner->dirty_rows()); });
    std::vector<int32_t> slots(ids.size());
    TE_EXPECT(knows != refuses([&] { planner->find(segments, slots.data(), 1); }),
              "dirty rows are told, and where rows are is not, or the other way round");
    for (size_t i = 0; knows && i < ids.size(); ++i) {
      TE_EXPECT(slots[i] == model.slot_or_none({1, ids[i]}), "a row is found where it is not");
    }
    if (knows) planner->mark_clean();
    planner->fail("bad_alloc");  // as if a plan had been lost, too
    if (knows) return check_refusals(setup, model, planner);
  }
}

void plan_once(const PlannerSetup& setup, uint64_t seed) {
  Random random(seed);
  const auto planner = FailingMemory::twice(
      [&] { return make_planner(setup.options, setup.num_partitions, kThreads); });
  ShortOfMemory failing(planner.get());
  PlannerModel model(setup, &failing);
  try {
    call_all(setup, &model, &random);
  } catch (const PlannerFailed& error) {
    TE_EXPECT(is_refused(error), "refused without its cause: %s", error.what());
    check_refusals(setup, model, planner.get());
  }
}

// --- replays ------------------------------------------------------------------------------------

struct Counted {
  std::vector<TableCounts> counts;
  std::vector<int64_t> cold, steps;
};

Counted replay_once(const PlannerSetup& setup, uint64_t seed) {
  Random random(seed);
  const auto planner = make_planner(setup.options, setup.num_partitions, kThreads);
  const auto num_tables = static_cast<int64_t>(setup.options.tables.size());
  Replay replay(planner.get(), {num_tables, 2, setup.depth, true, true});
  for (int part = 0; part < 3; ++part) {
    const PlannerModel::Batch batch = batch_of(setup, &random);
    std::vector<std::array<int64_t, 3>> offsets;
    std::vector<BatchedIds> tables;
    for (const auto& [table, ids] : batch) {
      const auto n = static_cast<int64_t>(ids.size());
      offsets.push_back({0, n / 2, n});
    }
    for (size_t t = 0; t < batch.size(); ++t) {
      tables.push_back({batch[t].first, offsets[t].data(), batch[t].second.data()});
    }
    FailingMemory::twice([&] { replay.push(tables, 2); });
  }
  FailingMemory::twice([&] { replay.finish(INT64_MAX); });
  return {planner->counts({}), replay.cold(), replay.take_steps()};
}

void check_replay(const PlannerSetup& setup, uint64_t seed, const Counted& truth) {
  try {
    const Counted now = replay_once(setup, seed);
    const bool same = now.cold == truth.cold && now.steps == truth.steps &&
                      std::memcmp(now.counts.data(), truth.counts.data(),
                                  truth.counts.size() * sizeof(TableCounts)) == 0;
    TE_EXPECT(same, "a replay counts otherwise after it ran out of memory");
  } catch (const PlannerFailed& error) {
    TE_EXPECT(is_refused(error), "refused without its cause: %s", error.what());
  }
}

// --- the write buffer ---------------------------------------------------------------------------

void buffer_once(uint64_t seed) {
  constexpr int64_t kBytes = 8;
  Random random(seed);
  WriteBuffer buffer(kBytes, 3 * kBytes);
  std::map<Key, int64_t> newest, below;  // what was added, and what has arrived
  int64_t version = 0;
  const auto take = [&] {
    BufferedRows taken;
    const bool any = FailingMemory::twice([&] {
      taken = {};
      return buffer.take(&taken);
    });
    for (size_t i = 0; i < taken.rows.size(); ++i) {
      std::memcpy(&below[{taken.tables[i], taken.rows[i]}], taken.records.data() + i * kBytes,
                  kBytes);
    }
    if (any) FailingMemory::twice([&] { buffer.arrived(); });
    return any;
  };
  for (int turn = 0; turn < 4; ++turn) {
    for (int64_t add = 0; add < 3; ++add) {
      std::vector<uint16_t> tables;
      std::vector<int64_t> rows, records;
      for (int64_t r = random.below(3); r < 14; r += random.between(1, 4)) {
        tables.push_back(static_cast<uint16_t>(r % 2));
        rows.push_back(r);
        records.push_back(++version);
        newest[{tables.back(), r}] = version;
      }
      FailingMemory::twice([&] {
        buffer.add(tables.data(), rows.data(), reinterpret_cast<const uint8_t*>(records.data()),
                   static_cast<int64_t>(rows.size()));
      });
      if (turn == 2 && add == 0) FailingMemory::twice([&] { buffer.hold(); });
    }
    for (const auto& [key, expected] : newest) {
      int64_t record = 0;
      bool found = false;
      FailingMemory::twice([&] {
        buffer.read(&key.first, &key.second, 1, reinterpret_cast<uint8_t*>(&record), &found);
      });
      if (!found) record = below.count(key) == 1 ? below[key] : 0;
      TE_EXPECT(record == expected, "row %lld has an old record, or none",
                static_cast<long long>(key.second));
    }
    take();
    if (turn == 3) buffer.resume();
  }
  while (take()) continue;
  TE_EXPECT(below == newest && buffer.bytes() == 0, "records are lost, or left");
}

// --- loops, records, kernels --------------------------------------------------------------------

template <typename Loop>
void loop_once(const Loop& loop) {
  std::vector<int> runs(40, 0);
  try {
    FailingMemory::during([&] { loop(&runs); });
  } catch (const std::bad_alloc&) {
    TE_EXPECT(runs == std::vector<int>(40, 0), "a loop without memory began");
    loop(&runs);
  }
  TE_EXPECT(runs == std::vector<int>(40, 1), "a block did not run once");
}

void pools_once() {
  loop_once([](std::vector<int>* runs) {
    parallel_for(40, 4, [runs](int64_t i) { ++(*runs)[static_cast<size_t>(i)]; });
  });
  ReaderPool readers(3);
  loop_once([&readers](std::vector<int>* runs) {
    readers.parallel_for(40, 3, [runs](size_t i) { ++(*runs)[i]; });
  });
}

std::vector<uint8_t> bytes_of(RecordArray* records) {
  std::vector<int32_t> slots;
  for (int32_t i = 0; i < records->num_slots(); ++i) slots.push_back(i);
  std::vector<uint8_t> out(static_cast<size_t>(records->num_slots() * records->record_bytes()));
  records->gather(slots.data(), records->num_slots(), out.data(), 1);
  return out;
}

struct Trained {
  std::vector<float> out;
  std::vector<uint8_t> records;
};

// One batch's rows are filled, looked up and updated.
Trained train_once(const Task& task, const Batch& batch, const StepPlan& plan) {
  const auto num_rows = static_cast<int64_t>(plan.slots.size());
  const auto records = FailingMemory::twice([&] {
    return std::make_unique<RecordArray>(num_rows, task.dim, task.type, task.state_floats);
  });
  std::vector<uint32_t> words;
  for (uint16_t t : plan.tables) words.push_back(task.table_words[t]);
  FailingMemory::twice([&] {
    records->initialise(plan.slots.data(), num_rows, words.data(), plan.keys.data(), nullptr,
                        task.init, kThreads);
  });
  const Occurrences occurrences{plan.slots, plan.inverse, plan.group_start, plan.group};
  const std::vector<uint8_t> before = bytes_of(records.get());
  const auto step = [&] { return train(task, batch, 1, occurrences, records.get(), kThreads); };
  Trained trained;
  try {
    trained.out = FailingMemory::during(step);
  } catch (const std::bad_alloc&) {
    TE_EXPECT(bytes_of(records.get()) == before, "a step without memory changed rows");
    trained.out = step();
  }
  trained.records = bytes_of(records.get());
  return trained;
}

void check_training(Random* random) {
  Task task = task_of(random, /*whole=*/false);
  Batch batch = batch_of(task, false, random);
  batch.updates = true;
  const auto planner =
      make_planner({task.tables, 0, 20000, 0, 0, "lru", true, true}, /*num_partitions=*/1, 1);
  const auto plan = planner->plan_now(batch.segments());
  if (plan->slots.empty()) return;
  FailingMemory::arm(0, false);
  const Trained truth = train_once(task, batch, *plan);
  with_each_failing(false, [&] {
    const Trained now = train_once(task, batch, *plan);
    TE_EXPECT(now.out == truth.out && now.records == truth.records, "other rows were trained");
  });
}

}  // namespace

void stress_memory(const Run& run) {
  // First: then the threads have yet to be made.
  with_each_failing(true, pools_once);
  for (Rounds rounds(run); rounds.next();) {
    Random random(rounds.seed());
    const bool for_good = random.one_in(2);
    with_each_failing(for_good, pools_once);
    with_each_failing(for_good, [&] { buffer_once(rounds.seed()); });
    for (const int num_partitions : {1, 2}) {
      const PlannerSetup setup = small_setup(num_partitions, &random);
      const int64_t points = with_each_failing(for_good, [&] { plan_once(setup, rounds.seed()); });
      TE_EXPECT(points > 100, "%lld allocations are too few", static_cast<long long>(points));
      FailingMemory::arm(0, false);
      const Counted truth = replay_once(setup, rounds.seed());
      with_each_failing(for_good, [&] { check_replay(setup, rounds.seed(), truth); });
    }
    check_training(&random);
  }
}

}  // namespace te::stress
