// The calls that a staging thread makes to a planner, drawn at random, and the batches in them.
#pragma once

#include "tests/planner_model.h"

namespace te::stress {

constexpr int64_t kMaxWaiting = 6;
constexpr int64_t kMaxHeld = 4;
constexpr int64_t kIdsOfTable = 150;   // that batches name
constexpr int64_t kNumWholeRows = 40;  // table 2, in every other round

inline int64_t id_in(const PlannerSetup& setup, uint16_t table, Random* random) {
  if (table == 2) return random->below(kNumWholeRows);
  const int64_t id = random->skewed_below(kIdsOfTable);
  return setup.options.tables[table].num_rows < 0 ? id * 0x300000007 - 11 : id;
}

inline PlannerModel::Batch batch_of(const PlannerSetup& setup, Random* random) {
  PlannerModel::Batch batch;
  for (size_t t = 0; t < setup.options.tables.size(); ++t) {
    const auto table = static_cast<uint16_t>(t);
    batch.emplace_back(table, std::vector<int64_t>());
    const int64_t n = random->below(setup.max_ids + 1);
    for (int64_t i = 0; i < n; ++i) batch.back().second.push_back(id_in(setup, table, random));
  }
  return batch;
}

// Random calls, each of them checked.
inline void stage(const PlannerSetup& setup, PlannerModel* model, Random* random) {
  for (int64_t i = 0; i < setup.num_operations; ++i) {
    const int64_t choice = random->below(100);
    if (choice < 40 && model->num_waiting() < kMaxWaiting) {
      model->push(batch_of(setup, random));
    } else if (choice < 70 && model->num_waiting() > 0 && model->num_held() < kMaxHeld) {
      model->plan();
    } else if (choice < 72) {
      model->look_up(batch_of(setup, random));
    } else if (choice < 95 && model->num_held() > 0) {
      model->release(static_cast<size_t>(random->below(static_cast<int64_t>(model->num_held()))),
                     !random->one_in(3), !setup.some_unused || random->one_in(2));
    } else if (choice == 95 && model->num_held() < kMaxHeld) {
      model->plan_now(batch_of(setup, random));
    } else if (choice == 96 && random->one_in(4)) {
      model->cancel();
    } else if (choice == 97) {
      model->write_dirty();
    } else if (choice == 98) {
      model->refuse(batch_of(setup, random), random);
    } else if (choice == 99) {
      model->check_counts();
    }
  }
  model->check_counts();
}

}  // namespace te::stress
