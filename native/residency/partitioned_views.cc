// What can be asked of a partitioned planner.
#include "core/thread_pool.h"
#include "residency/partitioned_planner.h"

namespace te {
namespace {

void add_to(std::vector<TableCounts>* sum, const std::vector<TableCounts>& more) {
  sum->resize(more.size());
  for (size_t t = 0; t < more.size(); ++t) (*sum)[t].add(more[t]);
}

}  // namespace

void PartitionedPlanner::find(int32_t table, const int64_t* ids, int64_t n, int32_t* slots) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t num_ids = static_cast<size_t>(n);
  asked_.deal({{table, ids, n}}, num_threads_for(num_ids));
  for_partitions(num_ids, [&](size_t s, SinglePlanner* partition) {
    const size_t begin = static_cast<size_t>(asked_.begin(0, s));
    const size_t end = static_cast<size_t>(asked_.begin(asked_.pieces().size(), s));
    std::vector<int32_t> mine(end - begin);
    partition->find(table, asked_.ids() + begin, static_cast<int64_t>(mine.size()), mine.data());
    for (size_t i = begin; i < end; ++i) {
      const int32_t to = asked_.occurrences()[i];
      slots[to] = partitioning_.outer_slot(static_cast<int>(s), table, ids[to], mine[i - begin]);
    }
  });
}

ResidentRows PartitionedPlanner::dirty_rows() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ResidentRows> parts(num());
  parallel_for(static_cast<int64_t>(num()), num_threads_, [&](int64_t i) {
    const int s = static_cast<int>(i);
    ResidentRows& rows = parts[static_cast<size_t>(s)];
    rows = partitions_[static_cast<size_t>(s)]->dirty_rows();
    for (size_t r = 0; r < rows.keys.size(); ++r) {
      rows.keys[r] = partitioning_.outer_id(s, rows.tables[r], rows.keys[r]);
      rows.slots[r] = partitioning_.outer_slot(s, rows.tables[r], rows.keys[r], rows.slots[r]);
    }
  });
  ResidentRows out;
  for (const ResidentRows& rows : parts) {
    out.tables.insert(out.tables.end(), rows.tables.begin(), rows.tables.end());
    out.keys.insert(out.keys.end(), rows.keys.begin(), rows.keys.end());
    out.slots.insert(out.slots.end(), rows.slots.begin(), rows.slots.end());
  }
  return out;
}

void PartitionedPlanner::mark_clean() {
  std::lock_guard<std::mutex> lock(mutex_);
  parallel_for(static_cast<int64_t>(num()), num_threads_,
               [&](int64_t s) { partitions_[static_cast<size_t>(s)]->mark_clean(); });
}

std::vector<TableCounts> PartitionedPlanner::counts(
    const std::optional<std::vector<int64_t>>& used) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<TableCounts> sum;
  for (const auto& partition : partitions_) add_to(&sum, partition->counts(used));
  return sum;
}

std::vector<TableCounts> PartitionedPlanner::lower_counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<TableCounts> sum;
  for (const auto& partition : partitions_) add_to(&sum, partition->lower_counts());
  return sum;
}

int64_t PartitionedPlanner::window_size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(window_.size());
}

int64_t PartitionedPlanner::num_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t n = 0;
  for (const auto& partition : partitions_) n += partition->num_resident();
  return n;
}

int64_t PartitionedPlanner::num_lower_resident() const {
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t n = 0;
  for (const auto& partition : partitions_) n += partition->num_lower_resident();
  return n;
}

int64_t PartitionedPlanner::overhead_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = merger_.bytes() + asked_.bytes();
  for (const MergedBatch& b : window_) bytes += b.bytes();
  int64_t sum = static_cast<int64_t>(bytes);
  for (const auto& partition : partitions_) sum += partition->overhead_bytes();
  return sum;
}

}  // namespace te
