#include "tests/training.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>

namespace te::stress {
namespace {

constexpr int64_t kIdStride = 0x300000007;  // of the table without bounds: ids beyond 32 bits

Step step_of(const Task& task, int64_t number) {
  Step step{task.optimizer, {}, {}, nullptr};
  const auto t = static_cast<double>(number);
  const double hyper[] = {
      0.05, 1e-6, 0.9, 1 - 0.9, 0.99, 1 - 0.99, 1 - std::pow(0.9, t), 1 - std::pow(0.99, t)};
  for (size_t i = 0; i < std::size(hyper); ++i) step.v[i] = static_cast<float>(hyper[i]);
  return step;
}

// In order of first occurrence; `slot_of(key)` once per row.
template <typename SlotOf>
Occurrences group(const Batch& batch, const SlotOf& slot_of) {
  Occurrences out;
  std::map<Key, int32_t> unique;
  std::vector<std::vector<int32_t>> groups;
  for (size_t t = 0; t < batch.ids.size(); ++t) {
    for (int64_t id : batch.ids[t]) {
      const Key key{static_cast<uint16_t>(t), id};
      const auto [it, is_new] = unique.emplace(key, static_cast<int32_t>(unique.size()));
      if (is_new) {
        out.slots.push_back(slot_of(key));
        groups.emplace_back();
      }
      groups[static_cast<size_t>(it->second)].push_back(static_cast<int32_t>(out.inverse.size()));
      out.inverse.push_back(it->second);
    }
  }
  out.group_start.push_back(0);
  for (const std::vector<int32_t>& g : groups) {
    out.group.insert(out.group.end(), g.begin(), g.end());
    out.group_start.push_back(static_cast<int32_t>(out.group.size()));
  }
  return out;
}

}  // namespace

std::vector<Segment> Batch::segments() const {
  std::vector<Segment> out;
  for (size_t t = 0; t < ids.size(); ++t) {
    out.push_back({static_cast<int32_t>(t), ids[t].data(), static_cast<int64_t>(ids[t].size())});
  }
  return out;
}

Task task_of(Random* random, bool whole) {
  Task task;
  task.tables = {{-1, -1}, {kRowsPerTable, -1}};
  if (whole) task.tables.push_back({kWholeRows, 0});
  for (size_t t = 0; t < task.tables.size(); ++t) {
    task.table_words.push_back(0x9E3779B9u * static_cast<uint32_t>(t + 1));
    task.pooling.push_back(
        random->pick<Pooling>({Pooling::kSum, Pooling::kSum, Pooling::kMean, Pooling::kMax}));
  }
  task.dim = random->pick<int64_t>({3, 4, 8, 17});
  task.type = random->pick<WeightType>({WeightType::kFloat32, WeightType::kFloat16});
  switch (random->below(3)) {
    case 0:
      task.optimizer = OptimizerKind::kRowWiseAdagrad;
      task.state_floats = 1;
      break;
    case 1:
      task.optimizer = OptimizerKind::kAdagrad;
      task.state_floats = task.dim;
      break;
    default:
      task.optimizer = OptimizerKind::kAdam;
      task.state_floats = 2 * task.dim;
  }
  task.init = {static_cast<uint64_t>(random->below(1 << 30)), -0.5f, 1.0f};
  // Small batches pass each other often; large ones give the kernels more than one block.
  task.max_ids = random->pick<int64_t>({60, 200, 200, 9000});
  return task;
}

Batch batch_of(const Task& task, Random* random) {
  const auto num_tables = static_cast<int64_t>(task.tables.size());
  Batch batch;
  batch.num_bags = random->between(1, task.max_ids / 4);
  batch.updates = !random->one_in(6);
  batch.ahead = !batch.updates && random->one_in(2);
  batch.ids.resize(task.tables.size());
  batch.offsets.push_back(0);
  const bool has_hot_row = random->one_in(3);
  for (int64_t t = 0; t < num_tables; ++t) {
    const TableShape& shape = task.tables[static_cast<size_t>(t)];
    const int64_t num_ids = random->below(task.max_ids / num_tables + 1);
    for (int64_t i = 0; i < num_ids; ++i) {
      const int64_t rows = shape.num_rows < 0 ? kRowsPerTable : shape.num_rows;
      const int64_t row = has_hot_row && !random->one_in(5) ? 1 : random->skewed_below(rows);
      batch.ids[static_cast<size_t>(t)].push_back(shape.num_rows < 0 ? row * kIdStride - 11 : row);
    }
    // Bags of any length, empty ones too.
    std::vector<int64_t> cuts;
    for (int64_t b = 1; b < batch.num_bags; ++b) cuts.push_back(random->below(num_ids + 1));
    std::sort(cuts.begin(), cuts.end());
    cuts.push_back(num_ids);
    for (int64_t cut : cuts) batch.offsets.push_back(batch.num_ids + cut);
    batch.num_ids += num_ids;
  }
  return batch;
}

std::vector<float> train(const Task& task, const Batch& batch, int64_t step_number,
                         const Occurrences& occurrences, RecordArray* records, int num_threads) {
  const auto num_features = static_cast<int64_t>(task.tables.size());
  const int64_t stride = num_features * task.dim;
  std::vector<int64_t> columns;
  for (int64_t f = 0; f < num_features; ++f) columns.push_back(f * task.dim);
  std::vector<int32_t> winners(static_cast<size_t>(num_features * batch.num_bags * task.dim));
  const Bags bags{occurrences.slots.data(),
                  occurrences.inverse.data(),
                  batch.offsets.data(),
                  nullptr,
                  batch.num_ids,
                  num_features,
                  batch.num_bags,
                  task.pooling.data(),
                  columns.data(),
                  stride,
                  winners.data(),
                  nullptr};
  const Records rows{records->weights(), records->state(), task.dim, task.state_floats, task.type};
  std::vector<float> out(static_cast<size_t>(batch.num_bags * stride));
  lookup(rows, bags, out.data(), num_threads);
  if (!batch.updates) return out;

  std::vector<float> grad(out.size());
  for (size_t i = 0; i < grad.size(); ++i) {
    grad[i] = 0.1f * out[i] + 0.01f * (static_cast<float>(i % 7) - 3.0f);
  }
  const Groups groups{occurrences.group_start.data(), occurrences.group.data(),
                      static_cast<int64_t>(occurrences.slots.size())};
  update(rows, bags, groups, grad.data(), step_of(task, step_number), num_threads);
  return out;
}

Truth train_densely(const Task& task, const std::vector<Batch>& batches) {
  const auto num_rows = static_cast<int64_t>(task.tables.size()) * kRowsPerTable;
  RecordArray records(num_rows, task.dim, task.type, task.state_floats);
  std::map<Key, int32_t> slots;
  const auto slot_of = [&](const Key& key) {
    const auto [it, is_new] = slots.emplace(key, static_cast<int32_t>(slots.size()));
    if (is_new) {
      records.initialise(&it->second, 1, &task.table_words[key.first], &key.second, nullptr,
                         task.init, 1);
    }
    return it->second;
  };
  Truth truth;
  std::set<Key> updated;
  for (size_t b = 0; b < batches.size(); ++b) {
    const Batch& batch = batches[b];
    truth.looked_up.push_back(train(task, batch, static_cast<int64_t>(b) + 1, group(batch, slot_of),
                                    &records, /*num_threads=*/1));
    if (!batch.updates) continue;
    for (size_t t = 0; t < batch.ids.size(); ++t) {
      for (int64_t id : batch.ids[t]) updated.emplace(static_cast<uint16_t>(t), id);
    }
  }
  for (const Key& key : updated) {
    std::vector<uint8_t> record(static_cast<size_t>(records.record_bytes()));
    records.gather(&slots.at(key), 1, record.data(), 1);
    truth.updated_rows.emplace(key, std::move(record));
  }
  return truth;
}

}  // namespace te::stress
