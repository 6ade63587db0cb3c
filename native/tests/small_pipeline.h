// A whole pipeline in small, with the overlaps of the engine's scheduler and mover: plans
// are made and their victims copied out while earlier plans' rows are read into their slots,
// records are on their way down, and the trainer looks up and updates, or evaluates: rows of a
// batch without a plan are read where they are, and from below ahead of their lookup.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "core/write_buffer.h"
#include "tests/training.h"

namespace te::stress {

constexpr int kNumThreads = 2;  // of every kernel and copy

struct PipelineSetup {
  size_t depth;
  size_t lookahead;
  size_t num_kept;  // batches that the trainer releases late
  int64_t num_readers;
  int64_t buffer_bytes;  // of the write buffer, in addition to one plan's
  bool evaluates_along;  // evaluation reads ahead past the batches that train in between
  PlannerOptions planner;
  int num_partitions;
};

// Rows by key; stands for the tier below.
class Store {
 public:
  void put(const BufferedRows& rows, int64_t record_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < rows.rows.size(); ++i) {
      const uint8_t* record = rows.records.data() + i * static_cast<size_t>(record_bytes);
      records_[{rows.tables[i], rows.rows[i]}].assign(record, record + record_bytes);
    }
  }
  bool get(const Key& key, uint8_t* out) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = records_.find(key);
    if (it == records_.end()) return false;
    std::memcpy(out, it->second.data(), it->second.size());
    return true;
  }
  const std::map<Key, std::vector<uint8_t>>& records() const { return records_; }  // when idle

 private:
  std::mutex mutex_;
  std::map<Key, std::vector<uint8_t>> records_;  // guarded by mutex_
};

// The rows of a plan that something is done with.
struct Rows {
  std::vector<int32_t> slots;
  std::vector<uint16_t> tables;
  std::vector<int64_t> ids;

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  void add(int32_t slot, uint16_t table, int64_t id) {
    slots.push_back(slot);
    tables.push_back(table);
    ids.push_back(id);
  }
};

// Where the occurrences of a batch that nobody plans are, and the rows that no memory tier holds.
struct Found {
  std::vector<int32_t> slots;  // (N) as the planner's `find`; -1 - m: the m-th of `below`
  te::Rows below;              // (M) distinct
};

// Rows of a batch to be evaluated that are read from below before its lookup.
struct ReadAhead {
  te::Rows rows;                 // (M) distinct
  std::vector<uint8_t> records;  // (M, record_bytes)
  Event ready;                   // both are there
};

struct Started {
  std::shared_ptr<StepPlan> plan;
  Event planned;  // `plan` is there
  Event ready;    // and its rows are in their slots
};

class Pipeline {
 public:
  Pipeline(const Task& task, const PipelineSetup& setup, uint64_t seed)
      : task_(task),
        setup_(setup),
        seed_(seed),
        planner_(make_planner(setup.planner, setup.num_partitions, kNumThreads)),
        records_(setup.planner.num_upper_slots(), task.dim, task.type, task.state_floats),
        lower_(std::max<int64_t>(setup.planner.lower_slots, 1), task.dim, task.type,
               task.state_floats),
        buffer_(records_.record_bytes(), 16 * records_.record_bytes()),
        reading_(setup.num_readers),
        writing_(1),
        staging_(1) {}

  RecordArray* records() { return &records_; }
  const Store& store() const { return store_; }

  // --- the trainer's calls ---

  void post_push(const Batch& batch) {
    post([this, ids = batch.ids] {  // its own copy, as the loader may reuse its buffers
      Batch copy;
      copy.ids = ids;
      planner_->push(copy.segments());
    });
  }
  std::shared_ptr<Started> post_plan() {
    const auto started = std::make_shared<Started>();
    post([this, started] {
      started->plan = planner_->plan(static_cast<int64_t>(setup_.depth));
      execute(started);
    });
    return started;
  }
  // A batch ahead of the stream, staged on return.
  std::shared_ptr<Started> stage(const Batch& batch) {
    const auto started = std::make_shared<Started>();
    post([this, started, &batch] {
      started->plan = planner_->plan_now(batch.segments());
      execute(started);
      wait_for_reads();
    });
    last_->wait();
    return started;
  }
  void release(int64_t number, bool updated) {
    if (last_->has_happened()) {
      planner_->release(number, updated);
    } else {
      post([this, number, updated] { planner_->release(number, updated); });
    }
  }
  // Starts reading the rows that no memory tier holds after the plans that are posted so far.
  std::shared_ptr<ReadAhead> read_ahead(const Batch& batch) {
    const auto ahead = std::make_shared<ReadAhead>();
    post([this, ahead, ids = batch.ids] {
      Batch copy;
      copy.ids = ids;
      ahead->rows = find(copy).below;
      reading_.post([this, ahead] {
        ahead->records = read_below(ahead->rows);
        ahead->ready.set();
      });
    });
    return ahead;
  }
  // The lookup of a batch where its rows are; it changes nothing. `ahead`, if there is one, was
  // read for this batch, and no row has changed since.
  std::vector<float> evaluate(const Batch& batch, ReadAhead* ahead) {
    if (ahead != nullptr) ahead->ready.wait();
    finish_moves();
    const Found found = find(batch);
    const bool same = ahead != nullptr && ahead->rows.keys == found.below.keys &&
                      ahead->rows.tables == found.below.tables;
    const std::vector<uint8_t> records = same ? std::move(ahead->records) : read_below(found.below);
    const Records upper = rows_of(&records_), lower = rows_of(&lower_);
    const Places places{found.slots.data(),
                        &upper,
                        setup_.planner.lower_slots > 0 ? &lower : nullptr,
                        records.data(),
                        records_.record_bytes(),
                        planner_->first_lower_slot()};
    return look_up_in_place(task_, batch, places, kNumThreads);
  }
  // What a user may ask at any time.
  void look_on() {
    int64_t misses = 0;
    for (const TableCounts& c : planner_->counts({})) misses += c.misses;
    TE_EXPECT(misses >= misses_seen_, "misses went from %lld to %lld",
              static_cast<long long>(misses_seen_), static_cast<long long>(misses));
    misses_seen_ = misses;
    TE_EXPECT(buffer_.bytes() >= 0 && planner_->overhead_bytes() > 0, "sizes below zero");
  }
  // Writes every dirty row. REQUIRES: every batch is released.
  void flush() {
    finish_moves();
    while (!writes_.empty()) wait_for_a_write();
    const ResidentRows dirty = planner_->dirty_rows();
    Rows above, below;
    for (size_t i = 0; i < dirty.slots.size(); ++i) {
      const int64_t slot = dirty.slots[i] - planner_->first_lower_slot();
      if (slot < 0) {
        above.add(dirty.slots[i], dirty.tables[i], dirty.keys[i]);
      } else {
        below.add(static_cast<int32_t>(slot), dirty.tables[i], dirty.keys[i]);
      }
    }
    hand_down(above, records_);
    hand_down(below, lower_);
    write();
    planner_->mark_clean();
    TE_EXPECT(buffer_.bytes() == 0, "the buffer keeps %lld bytes",
              static_cast<long long>(buffer_.bytes()));
  }

 private:
  void finish_moves() {
    if (last_ != nullptr) last_->wait();
    wait_for_reads();
  }
  Found find(const Batch& batch) {
    const std::vector<Segment> segments = batch.segments();
    Found out;
    out.slots.resize(static_cast<size_t>(num_ids_of(segments)));
    planner_->find(segments, out.slots.data(), kNumThreads);
    out.below = name_missing(segments, out.slots.data());
    return out;
  }

  // --- the staging thread ---

  void execute(const std::shared_ptr<Started>& started) {
    const StepPlan& plan = *started->plan;
    const bool handed_down = setup_.planner.lower_slots > 0 ? exchange(plan) : evict(plan);
    if (handed_down) {
      writes_.push_back(std::make_shared<Event>());
      writing_.post([this, arrived = writes_.back()] {
        write();
        arrived->set();
      });
      while (!writes_.empty() && buffer_.bytes() > setup_.buffer_bytes) wait_for_a_write();
    }
    Rows staged;
    for (size_t i = 0; i < plan.staged.size(); ++i) {
      const int32_t u = plan.staged[i];
      if (!plan.staged_from.empty() && plan.staged_from[i] != kNoSlot) continue;
      staged.add(plan.slots[u], plan.tables[u], plan.keys[u]);
    }
    if (staged.size() == 0) {
      started->ready.set();
    } else {
      while (!reads_.empty() && reads_.front()->ready.has_happened()) reads_.pop_front();
      reads_.push_back(started);
      reading_.post([this, started, staged = std::move(staged)] {
        read(staged, static_cast<uint64_t>(started->plan->number));
        started->ready.set();
      });
    }
    started->planned.set();
  }
  // Whether records went down.
  bool evict(const StepPlan& plan) {
    Rows victims;
    for (size_t v = 0; v < plan.victim_keys.size(); ++v) {
      if (!plan.victim_dirty[v]) continue;
      victims.add(plan.victim_slots[v], plan.victim_tables[v], plan.victim_keys[v]);
    }
    return hand_down(victims, records_);
  }
  // With a lower tier. What goes up is copied out before what comes down takes its slots.
  bool exchange(const StepPlan& plan) {
    std::vector<int32_t> from, to;  // slots below and above of what goes up
    for (size_t i = 0; i < plan.staged.size(); ++i) {
      if (plan.staged_from[i] == kNoSlot) continue;
      from.push_back(plan.staged_from[i]);
      to.push_back(plan.slots[plan.staged[i]]);
    }
    const std::vector<uint8_t> rising = copy_of(from, lower_);
    Rows falling, passing;
    for (size_t f = 0; f < plan.fallen_keys.size(); ++f) {
      if (!plan.fallen_dirty[f]) continue;
      falling.add(plan.fallen_slots[f], plan.fallen_tables[f], plan.fallen_keys[f]);
    }
    std::vector<int32_t> leaving, landing;  // slots above and below of what comes down
    for (size_t v = 0; v < plan.victim_keys.size(); ++v) {
      if (plan.victim_to[v] != kNoSlot) {
        leaving.push_back(plan.victim_slots[v]);
        landing.push_back(plan.victim_to[v]);
      } else if (plan.victim_dirty[v]) {
        passing.add(plan.victim_slots[v], plan.victim_tables[v], plan.victim_keys[v]);
      }
    }
    const bool fell = hand_down(falling, lower_);
    lower_.scatter(landing.data(), static_cast<int64_t>(landing.size()),
                   copy_of(leaving, records_).data(), nullptr, kNumThreads);
    const bool passed = hand_down(passing, records_);
    records_.scatter(to.data(), static_cast<int64_t>(to.size()), rising.data(), nullptr,
                     kNumThreads);
    return fell || passed;
  }
  static std::vector<uint8_t> copy_of(const std::vector<int32_t>& slots, const RecordArray& from) {
    std::vector<uint8_t> records(slots.size() * static_cast<size_t>(from.record_bytes()));
    from.gather(slots.data(), static_cast<int64_t>(slots.size()), records.data(), kNumThreads);
    return records;
  }
  bool hand_down(const Rows& rows, const RecordArray& from) {
    if (rows.size() == 0) return false;
    buffer_.add(rows.tables.data(), rows.ids.data(), copy_of(rows.slots, from).data(), rows.size());
    return true;
  }
  void wait_for_a_write() {
    writes_.front()->wait();
    writes_.pop_front();
  }
  void wait_for_reads() {
    for (const auto& started : reads_) started->ready.wait();
    reads_.clear();
  }

  // --- reading and writing threads ---

  // Fills slots with what is below, or with initial values.
  void read(const Rows& rows, uint64_t salt) {
    std::vector<uint8_t> records(rows.ids.size() * static_cast<size_t>(records_.record_bytes()));
    const auto found = look_below(rows.tables, rows.ids, salt, records.data());
    fill(&records_, rows.slots, rows.tables, rows.ids, records, found.get());
  }
  // Records of distinct rows that no memory tier holds.
  std::vector<uint8_t> read_below(const te::Rows& rows) {
    std::vector<uint8_t> records(rows.keys.size() * static_cast<size_t>(records_.record_bytes()));
    const auto found = look_below(rows.tables, rows.keys, rows.keys.size(), records.data());
    std::vector<int32_t> slots(rows.keys.size());
    std::iota(slots.begin(), slots.end(), 0);
    RecordArray scratch(std::max<int64_t>(static_cast<int64_t>(slots.size()), 1), task_.dim,
                        task_.type, task_.state_floats);
    fill(&scratch, slots, rows.tables, rows.keys, records, found.get());
    return copy_of(slots, scratch);
  }
  // Copies the records that are on their way down or in the store; says which these are.
  std::unique_ptr<bool[]> look_below(const std::vector<uint16_t>& tables,
                                     const std::vector<int64_t>& ids, uint64_t salt,
                                     uint8_t* records) {
    Random random(seed_ + salt);
    const auto record_bytes = static_cast<size_t>(records_.record_bytes());
    auto found = std::make_unique<bool[]>(ids.size());
    take_a_while(&random);
    buffer_.read(tables.data(), ids.data(), static_cast<int64_t>(ids.size()), records, found.get());
    take_a_while(&random);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!found[i]) found[i] = store_.get({tables[i], ids[i]}, records + i * record_bytes);
    }
    take_a_while(&random);
    return found;
  }
  void fill(RecordArray* array, const std::vector<int32_t>& slots,
            const std::vector<uint16_t>& tables, const std::vector<int64_t>& ids,
            const std::vector<uint8_t>& records, const bool* found) {
    std::vector<uint32_t> words;
    for (uint16_t t : tables) words.push_back(task_.table_words[t]);
    const auto n = static_cast<int64_t>(slots.size());
    array->scatter(slots.data(), n, records.data(), found, kNumThreads);
    array->initialise(slots.data(), n, words.data(), ids.data(), found, task_.init, kNumThreads);
  }
  void write() {
    for (BufferedRows taken; buffer_.take(&taken); taken = {}) {
      Random random(seed_ + taken.rows.size());
      take_a_while(&random);
      store_.put(taken, records_.record_bytes());
      take_a_while(&random);
      buffer_.arrived();
    }
  }
  // Some reads and writes take longer than their neighbours, so that these pass them.
  static void take_a_while(Random* random) {
    if (!random->one_in(3)) return;
    for (int64_t n = random->below(40); n > 0; --n) std::this_thread::yield();
  }

  template <typename Job>
  void post(Job job) {
    last_ = std::make_shared<Event>();
    staging_.post([job, done = last_] {
      job();
      done->set();
    });
  }

  const Task& task_;
  const PipelineSetup& setup_;
  const uint64_t seed_;
  const std::unique_ptr<Planner> planner_;
  RecordArray records_;
  RecordArray lower_;  // one slot that nobody uses where there is no such tier
  WriteBuffer buffer_;
  Store store_;

  // The trainer's.
  std::shared_ptr<Event> last_;  // end of the newest staging job
  int64_t misses_seen_ = 0;

  // The staging thread's, or the trainer's when no staging job is left.
  std::deque<std::shared_ptr<Event>> writes_;
  std::deque<std::shared_ptr<Started>> reads_;

  // Ended first, staging before the two that it gives work to.
  Executor reading_;
  Executor writing_;
  Executor staging_;
};

}  // namespace te::stress
