// A whole pipeline in small, with the overlaps of the engine's scheduler and mover: plans
// are made and their victims copied out while earlier plans' rows are read into their slots,
// records are on their way down, and the trainer looks up and updates.
#pragma once

#include <cstring>
#include <map>
#include <memory>
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
  PlannerOptions planner;
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
        planner_(setup.planner),
        records_(
            setup.planner.whole_slots + setup.planner.cached_slots + setup.planner.overflow_slots,
            task.dim, task.type, task.state_floats),
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
      planner_.push(copy.segments());
    });
  }
  std::shared_ptr<Started> post_plan() {
    const auto started = std::make_shared<Started>();
    post([this, started] {
      started->plan = planner_.plan(static_cast<int64_t>(setup_.depth));
      execute(started);
    });
    return started;
  }
  // A batch ahead of the stream, staged on return.
  std::shared_ptr<Started> stage(const Batch& batch) {
    const auto started = std::make_shared<Started>();
    post([this, started, &batch] {
      started->plan = planner_.plan_now(batch.segments());
      execute(started);
      wait_for_reads();
    });
    last_->wait();
    return started;
  }
  void release(int64_t number, bool updated) {
    if (last_->has_happened()) {
      planner_.release(number, updated);
    } else {
      post([this, number, updated] { planner_.release(number, updated); });
    }
  }
  // What a user may ask at any time.
  void look_on() {
    int64_t misses = 0;
    for (const TableCounts& c : planner_.counts({})) misses += c.misses;
    TE_EXPECT(misses >= misses_seen_, "misses went from %lld to %lld",
              static_cast<long long>(misses_seen_), static_cast<long long>(misses));
    misses_seen_ = misses;
    TE_EXPECT(buffer_.bytes() >= 0 && planner_.overhead_bytes() > 0, "sizes below zero");
  }
  // Writes every dirty row. REQUIRES: every batch is released.
  void flush() {
    last_->wait();
    wait_for_reads();
    while (!writes_.empty()) wait_for_a_write();
    const ResidentRows dirty = planner_.dirty_rows();
    hand_down({dirty.slots, dirty.tables, dirty.keys});
    write();
    planner_.mark_clean();
    TE_EXPECT(buffer_.bytes() == 0, "the buffer keeps %lld bytes",
              static_cast<long long>(buffer_.bytes()));
  }

 private:
  // --- the staging thread ---

  void execute(const std::shared_ptr<Started>& started) {
    const StepPlan& plan = *started->plan;
    Rows victims;
    for (size_t v = 0; v < plan.victim_keys.size(); ++v) {
      if (!plan.victim_dirty[v]) continue;
      victims.add(plan.victim_slots[v], plan.victim_tables[v], plan.victim_keys[v]);
    }
    const int64_t added = victims.size() * records_.record_bytes();
    while (!writes_.empty() && buffer_.bytes() + added > setup_.buffer_bytes) wait_for_a_write();
    if (added > 0) {
      hand_down(victims);
      writes_.push_back(std::make_shared<Event>());
      writing_.post([this, arrived = writes_.back()] {
        write();
        arrived->set();
      });
    }
    if (plan.staged.empty()) {
      started->ready.set();
    } else {
      while (!reads_.empty() && reads_.front()->ready.has_happened()) reads_.pop_front();
      reads_.push_back(started);
      reading_.post([this, started] {
        read(*started->plan);
        started->ready.set();
      });
    }
    started->planned.set();
  }
  void hand_down(const Rows& rows) {
    std::vector<uint8_t> records(static_cast<size_t>(rows.size() * records_.record_bytes()));
    records_.gather(rows.slots.data(), rows.size(), records.data(), kNumThreads);
    buffer_.add(rows.tables.data(), rows.ids.data(), records.data(), rows.size());
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

  void read(const StepPlan& plan) {
    Random random(seed_ + static_cast<uint64_t>(plan.number));
    Rows rows;
    std::vector<uint32_t> words;
    for (int32_t u : plan.staged) {
      rows.add(plan.slots[u], plan.tables[u], plan.keys[u]);
      words.push_back(task_.table_words[plan.tables[u]]);
    }
    const auto record_bytes = static_cast<size_t>(records_.record_bytes());
    std::vector<uint8_t> records(rows.ids.size() * record_bytes);
    const auto found = std::make_unique<bool[]>(rows.ids.size());
    take_a_while(&random);
    buffer_.read(rows.tables.data(), rows.ids.data(), rows.size(), records.data(), found.get());
    take_a_while(&random);
    for (size_t i = 0; i < rows.ids.size(); ++i) {
      if (found[i]) continue;
      found[i] = store_.get({rows.tables[i], rows.ids[i]}, records.data() + i * record_bytes);
    }
    take_a_while(&random);
    records_.scatter(rows.slots.data(), rows.size(), records.data(), found.get(), kNumThreads);
    records_.initialise(rows.slots.data(), rows.size(), words.data(), rows.ids.data(), found.get(),
                        task_.init, kNumThreads);
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
  SinglePlanner planner_;
  RecordArray records_;
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
