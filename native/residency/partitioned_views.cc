// What can be asked of a planner that is cut into partitions.
#include <mutex>
#include <vector>

#include "core/thread_pool.h"
#include "residency/partitioned_planner.h"

namespace te {
namespace {

template <typename T>
size_t bytes_of(const T& vector) {
  return vector.capacity() * sizeof(typename T::value_type);
}

}  // namespace

size_t PartitionedPlanner::Batch::bytes() const {
  return bytes_of(inverse) + bytes_of(group) + bytes_of(group_start) + bytes_of(partitions) +
         bytes_of(first_unique) + bytes_of(partitions_unique);
}

void PartitionedPlanner::find(int32_t table, const int64_t* ids, int64_t n, int32_t* slots) {
  if (is_plain()) return plain()->find(table, ids, n, slots);
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t num_ids = static_cast<size_t>(n);
  dealt_.deal({{table, ids, n}}, num_threads_for(num_ids));
  for_partitions(num_ids, [&](size_t s, Planner* partition) {
    const size_t begin = static_cast<size_t>(dealt_.begin(0, s));
    const size_t end = static_cast<size_t>(dealt_.begin(dealt_.pieces().size(), s));
    std::vector<int32_t> mine(end - begin);
    partition->find(table, dealt_.ids() + begin, static_cast<int64_t>(mine.size()), mine.data());
    for (size_t i = begin; i < end; ++i) {
      const int32_t to = dealt_.occurrences()[i];
      slots[to] = partitioning_.outer_slot(static_cast<int>(s), table, ids[to], mine[i - begin]);
    }
  });
}

ResidentRows PartitionedPlanner::dirty_rows() {
  if (is_plain()) return plain()->dirty_rows();
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ResidentRows> parts(num());
  parallel_for(static_cast<int64_t>(num()), num_threads_, [&](int64_t i) {
    const size_t s = static_cast<size_t>(i);
    const int partition = static_cast<int>(i);
    ResidentRows& rows = parts[s];
    rows = partitions_[s]->dirty_rows();
    for (size_t r = 0; r < rows.keys.size(); ++r) {
      rows.keys[r] = partitioning_.outer_id(partition, rows.tables[r], rows.keys[r]);
      rows.slots[r] =
          partitioning_.outer_slot(partition, rows.tables[r], rows.keys[r], rows.slots[r]);
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
  if (is_plain()) return plain()->mark_clean();
  std::lock_guard<std::mutex> lock(mutex_);
  parallel_for(static_cast<int64_t>(num()), num_threads_,
               [&](int64_t s) { partitions_[static_cast<size_t>(s)]->mark_clean(); });
}

std::vector<TableCounts> PartitionedPlanner::sum(std::vector<TableCounts> (Planner::*of)()
                                                     const) const {
  std::vector<TableCounts> out = (plain()->*of)();
  if (is_plain()) return out;
  for (size_t s = 1; s < num(); ++s) {
    const std::vector<TableCounts> mine = (partitions_[s].get()->*of)();
    for (size_t t = 0; t < out.size(); ++t) out[t].add(mine[t]);
  }
  return out;
}

std::vector<TableCounts> PartitionedPlanner::counts() const {
  std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
  if (!is_plain()) lock.lock();
  return sum(&Planner::counts);
}

std::vector<TableCounts> PartitionedPlanner::lower_counts() const {
  std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
  if (!is_plain()) lock.lock();
  return sum(&Planner::lower_counts);
}

int64_t PartitionedPlanner::window_size() const { return plain()->window_size(); }

int64_t PartitionedPlanner::num_resident() const {
  if (is_plain()) return plain()->num_resident();
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t n = 0;
  for (const auto& partition : partitions_) n += partition->num_resident();
  return n;
}

int64_t PartitionedPlanner::num_lower_resident() const {
  if (is_plain()) return plain()->num_lower_resident();
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t n = 0;
  for (const auto& partition : partitions_) n += partition->num_lower_resident();
  return n;
}

bool PartitionedPlanner::all_resident() const {
  return is_plain() && plain()->all_resident();  // partitions share slots
}

int64_t PartitionedPlanner::overhead_bytes() const {
  if (is_plain()) return plain()->overhead_bytes();
  std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = dealt_.bytes() + bytes_of(grouped_) + bytes_of(uniques_);
  for (const Found& f : found_) bytes += bytes_of(f.inverse) + bytes_of(f.start);
  for (const Batch& b : window_) bytes += b.bytes();
  int64_t sum = static_cast<int64_t>(bytes);
  for (const auto& partition : partitions_) sum += partition->overhead_bytes();
  return sum;
}

}  // namespace te
