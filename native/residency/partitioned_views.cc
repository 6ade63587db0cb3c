// What can be asked of a partitioned planner.
#include <algorithm>

#include "core/thread_pool.h"
#include "residency/partitioned_planner.h"

namespace te {
namespace {

void add_to(std::vector<TableCounts>* sum, const std::vector<TableCounts>& more) {
  sum->resize(more.size());
  for (size_t t = 0; t < more.size(); ++t) (*sum)[t].add(more[t]);
}

}  // namespace

void PartitionedPlanner::find(const std::vector<Segment>& segments, int32_t* slots,
                              int num_threads) {
  require_countable(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_rows();
  const size_t num_ids = static_cast<size_t>(num_ids_of(segments));
  const int threads = std::min(num_threads, num_threads_for(num_ids));
  asked_.deal(segments, threads);
  const std::vector<DealtIds::Piece>& pieces = asked_.pieces();
  parallel_for(static_cast<int64_t>(num()), threads, [&](int64_t partition) {
    const size_t s = static_cast<size_t>(partition);
    const int32_t begin = asked_.begin(0, s);
    std::vector<int32_t> mine(static_cast<size_t>(asked_.begin(pieces.size(), s) - begin));
    partitions_[s]->find(asked_.segments_of(s), mine.data(), 1);
    for (size_t p = 0; p < pieces.size(); ++p) {
      const DealtIds::Piece& piece = pieces[p];
      for (int32_t i = asked_.begin(p, s); i < asked_.begin(p + 1, s); ++i) {
        const int32_t to = asked_.occurrences()[i];
        slots[to] =
            partitioning_.outer_slot(static_cast<int>(s), piece.table, piece.ids[to - piece.first],
                                     mine[static_cast<size_t>(i - begin)]);
      }
    }
  });
}

ResidentRows PartitionedPlanner::dirty_rows() {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.require_rows();
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
  failure_.require_rows();
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
