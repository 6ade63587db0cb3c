// Trains and evaluates through the small pipeline: what every batch looked up, and every row at the
// end, must be the dense model's, bit for bit.
#include <cstring>
#include <memory>
#include <string>

#include "tests/small_pipeline.h"
#include "tests/training.h"

namespace te::stress {
namespace {

constexpr int64_t kNumBatches = 40;

// The trainer: takes batches in order, makes the stream known and has plans posted as early as the
// pipeline's rules allow.
class Trainer {
 public:
  Trainer(const Task& task, const PipelineSetup& setup, const std::vector<Batch>& batches,
          const Truth& truth, Pipeline* pipeline)
      : task_(task), setup_(setup), batches_(batches), truth_(truth), pipeline_(pipeline) {
    for (size_t b = 0; b < batches.size(); ++b) {
      if (batches[b].evaluates) {
        evaluations_.push_back(b);
      } else if (!batches[b].ahead) {
        stream_.push_back(b);
      }
    }
  }

  void run() {
    for (size_t b = 0; b < batches_.size(); ++b) {
      pull();
      if (batches_[b].evaluates) {
        evaluate(b);
      } else if (batches_[b].ahead) {
        const auto started = pipeline_->stage(batches_[b]);
        train_on(*started->plan, b);
        pipeline_->release(started->plan->number, false);
      } else {
        take();
        if (num_taken_ - num_released_ > setup_.num_kept) release();
      }
      if (b % 4 == 0) pipeline_->look_on();
    }
    while (num_released_ < num_taken_) release();
  }

 private:
  void pull() {
    while (num_known_ < stream_.size() &&
           num_known_ <= num_taken_ + setup_.depth + setup_.lookahead) {
      pipeline_->post_push(batches_[stream_[num_known_++]]);
      advance();
    }
    advance();
  }
  void advance() {
    while (started_.size() < num_known_) {
      const size_t next = started_.size();
      const bool seen_enough =
          num_known_ == stream_.size() || num_known_ - 1 - next >= setup_.lookahead;
      if (!seen_enough || next > num_released_ + setup_.depth) return;
      started_.push_back(pipeline_->post_plan());
    }
  }
  void take() {
    // The plan is asked for before its time when late releases held it back.
    while (started_.size() <= num_taken_) started_.push_back(pipeline_->post_plan());
    const size_t n = num_taken_++;
    started_[n]->planned.wait();
    started_[n]->ready.wait();
    train_on(*started_[n]->plan, stream_[n]);
  }
  void release() {
    const size_t n = num_released_++;
    pipeline_->release(started_[n]->plan->number, batches_[stream_[n]].updates);
    started_[n].reset();
    advance();
  }
  // As the engine's EvaluationStream: reads ahead for this batch and `depth` after it.
  void evaluate(size_t b) {
    while (reads_ahead_.size() <= setup_.depth && num_evaluations_begun_ < evaluations_.size()) {
      const size_t next = evaluations_[num_evaluations_begun_];
      if (!setup_.evaluates_along && trains_between(b, next)) break;
      reads_ahead_.push_back({pipeline_->read_ahead(batches_[next]), num_updates_});
      ++num_evaluations_begun_;
    }
    const AheadOfEvaluation ahead = reads_ahead_.front();
    reads_ahead_.pop_front();
    const bool up_to_date = ahead.num_updates == num_updates_;
    check(b, pipeline_->evaluate(batches_[b], up_to_date ? ahead.read.get() : nullptr));
  }
  bool trains_between(size_t begin, size_t end) const {
    for (size_t b = begin; b < end; ++b) {
      if (!batches_[b].evaluates) return true;
    }
    return false;
  }
  void train_on(const StepPlan& plan, size_t b) {
    const Occurrences occurrences{plan.slots, plan.inverse, plan.group_start, plan.group};
    const std::vector<float> out = train(task_, batches_[b], static_cast<int64_t>(b) + 1,
                                         occurrences, pipeline_->records(), kNumThreads);
    num_updates_ += batches_[b].updates;
    check(b, out);
  }
  void check(size_t b, const std::vector<float>& out) const {
    const std::vector<float>& expected = truth_.looked_up[b];
    TE_EXPECT(out.size() == expected.size() &&
                  std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0,
              "batch %zu looked up other values than the dense model", b);
  }

  struct AheadOfEvaluation {
    std::shared_ptr<ReadAhead> read;
    size_t num_updates;  // when it was started
  };

  const Task& task_;
  const PipelineSetup& setup_;
  const std::vector<Batch>& batches_;
  const Truth& truth_;
  Pipeline* const pipeline_;
  std::vector<size_t> stream_;                     // batches that the planner's window gets
  std::vector<std::shared_ptr<Started>> started_;  // posted plans; null once released
  size_t num_known_ = 0, num_taken_ = 0, num_released_ = 0;
  std::vector<size_t> evaluations_;            // batches that evaluate
  std::deque<AheadOfEvaluation> reads_ahead_;  // of the next ones
  size_t num_evaluations_begun_ = 0;           // whose reads have been started
  size_t num_updates_ = 0;
};

PipelineSetup setup_of(const Task& task, Random* random) {
  PipelineSetup s;
  s.depth = static_cast<size_t>(random->below(4));
  s.lookahead = static_cast<size_t>(random->below(5));
  s.num_kept = static_cast<size_t>(random->below(3));
  s.num_readers = random->between(1, 4);
  s.buffer_bytes = random->pick<int64_t>({0, 4096, 1 << 20});
  s.planner.tables = task.tables;
  s.planner.policy = random->pick<std::string>({"lookahead", "lookahead:s3fifo", "lru", "lfu"});
  s.planner.whole_slots = task.tables.size() > 2 ? kWholeRows : 0;
  s.planner.cached_slots = random->pick<int64_t>({64, 300, 1500});
  if (random->one_in(2)) s.planner.lower_slots = random->pick<int64_t>({8, 100, 800});
  s.num_partitions = random->one_in(2) ? 1 : 4;
  s.planner.overflow_slots = static_cast<int64_t>(s.depth + s.num_kept + 4) * task.max_ids *
                             s.num_partitions;  // never the bound
  s.evaluates_along = random->one_in(2);
  return s;
}

void stress_round(uint64_t seed) {
  Random random(seed);
  const Task task = task_of(&random, random.one_in(2));
  const PipelineSetup setup = setup_of(task, &random);
  std::vector<Batch> batches;
  for (int64_t b = 0; b < kNumBatches; ++b) {
    // Often several in a row, as an evaluation between two epochs.
    const bool amid = b > 0 && batches.back().evaluates;
    batches.push_back(batch_of(task, random.below(8) < (amid ? 6 : 1), &random));
  }
  // Results are the same bits for any instruction set.
  select_isa(random.pick(available_isas()));
  const Truth truth = train_densely(task, batches);
  select_isa(random.pick(available_isas()));

  Pipeline pipeline(task, setup, seed);
  Trainer(task, setup, batches, truth, &pipeline).run();
  pipeline.flush();
  const auto& stored = pipeline.store().records();
  TE_EXPECT(stored.size() == truth.updated_rows.size(), "%zu rows are stored, %zu were updated",
            stored.size(), truth.updated_rows.size());
  for (const auto& [key, record] : truth.updated_rows) {
    const auto it = stored.find(key);
    TE_EXPECT(it != stored.end() && it->second == record,
              "row %lld of table %d is not the dense model's", static_cast<long long>(key.second),
              key.first);
  }
}

}  // namespace

void stress_pipeline(const Run& run) {
  for (Rounds rounds(run); rounds.next();) stress_round(rounds.seed());
}

}  // namespace te::stress
