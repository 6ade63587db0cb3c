#include "residency/batch_merger.h"

#include <algorithm>
#include <array>

#include "core/thread_pool.h"

namespace te {
namespace {

template <typename T>
size_t bytes_of(const T& vector) {
  return vector.capacity() * sizeof(typename T::value_type);
}

}  // namespace

size_t MergedBatch::bytes() const {
  return bytes_of(inverse) + bytes_of(group) + bytes_of(group_start) + bytes_of(partitions) +
         bytes_of(first_unique) + bytes_of(partitions_unique);
}

size_t BatchMerger::bytes() const {
  size_t bytes = dealt_.bytes() + bytes_of(grouped_) + bytes_of(uniques_);
  for (const Found& f : found_) bytes += bytes_of(f.inverse) + bytes_of(f.start);
  return bytes;
}

MergedBatch BatchMerger::push(const std::vector<Segment>& segments, int num_threads,
                              const Push& push_part) {
  dealt_.deal(segments, num_threads);
  const size_t num_ids = dealt_.num_ids();
  const size_t num_pieces = dealt_.pieces().size();
  const auto for_pieces = [&](const auto& fn) {
    parallel_for(static_cast<int64_t>(num_pieces), num_threads,
                 [&](int64_t p) { fn(static_cast<size_t>(p)); });
  };
  MergedBatch batch;
  batch.partitions_unique.resize((num_pieces + 1) * num_);
  grouped_.resize(num_ids);
  parallel_for(static_cast<int64_t>(num_), num_threads, [&](int64_t i) {
    const size_t s = static_cast<size_t>(i);
    group(s, push_part(s, dealt_.segments_of(s), &found_[s].inverse), &batch);
  });

  for (size_t p = 0; p <= num_pieces; ++p) {
    int32_t n = 0;
    for (size_t s = 0; s < num_; ++s) n += batch.partitions_unique[p * num_ + s];
    batch.first_unique.push_back(n);
  }
  int32_t num_unique = 0;
  for (size_t s = 0; s < num_; ++s) {
    found_[s].first_unique = num_unique;
    num_unique += batch.partitions_unique[num_pieces * num_ + s];
  }
  uniques_.resize(static_cast<size_t>(num_unique));
  batch.partitions.resize(static_cast<size_t>(num_unique));
  batch.inverse.resize(num_ids);
  batch.group.resize(num_ids);
  batch.group_start.resize(static_cast<size_t>(num_unique) + 1);
  std::vector<int32_t> first(num_pieces + 1);  // in `group`, of each piece's unique rows
  for_pieces([&](size_t p) { first[p + 1] = name_unique(p, &batch); });
  for (size_t p = 0; p < num_pieces; ++p) first[p + 1] += first[p];
  for_pieces([&](size_t p) {
    merge_inverse(p, &batch);
    merge_groups(p, first[p], &batch);
  });
  batch.group_start.back() = static_cast<int32_t>(num_ids);
  return batch;
}

// Groups the occurrences of partition `s` by row: a counting sort, stable.
void BatchMerger::group(size_t s, int32_t num_unique, MergedBatch* batch) {
  Found& found = found_[s];
  const int32_t* inverse = found.inverse.data();
  const int32_t begin = dealt_.begin(0, s);
  // Counts at u + 2 become starts at u + 1, and those the cursors that end as the next row's start.
  found.start.assign(static_cast<size_t>(num_unique) + 2, 0);
  int32_t* start = found.start.data();
  int32_t seen = 0;
  for (size_t p = 0; p < dealt_.pieces().size(); ++p) {
    batch->partitions_unique[p * num_ + s] = seen;
    for (int32_t i = dealt_.begin(p, s); i < dealt_.begin(p + 1, s); ++i) {
      const int32_t u = inverse[i - begin];
      ++start[u + 2];
      seen = std::max(seen, u + 1);
    }
  }
  batch->partitions_unique[dealt_.pieces().size() * num_ + s] = seen;
  for (int32_t u = 2; u < num_unique + 2; ++u) start[u] += start[u - 1];
  for (size_t i = 0; i < found.inverse.size(); ++i) {
    grouped_[static_cast<size_t>(begin + start[inverse[i] + 1]++)] =
        dealt_.occurrences()[static_cast<size_t>(begin) + i];
  }
  found.start.pop_back();
}

// Numbers the unique rows that first occur in piece `p`, in that order; returns how many
// occurrences they have.
int32_t BatchMerger::name_unique(size_t p, MergedBatch* batch) {
  const DealtIds::Piece& piece = dealt_.pieces()[p];
  const int32_t* before = batch->partitions_unique.data() + p * num_;
  const int32_t* after = before + num_;
  std::array<uint64_t, DealtIds::kPieceIds / 64> is_first{};
  for (size_t s = 0; s < num_; ++s) {
    const int32_t* grouped = grouped_.data() + dealt_.begin(0, s);
    for (int32_t u = before[s]; u < after[s]; ++u) {
      const int32_t at = grouped[found_[s].start[static_cast<size_t>(u)]] - piece.first;
      is_first[static_cast<size_t>(at / 64)] |= uint64_t{1} << (at % 64);
    }
  }
  std::array<int32_t, Partitioning::kMaxPartitions> next;
  std::copy_n(before, num_, next.begin());
  const uint8_t* partitions = dealt_.partitions() + piece.first;
  int32_t unique = batch->first_unique[p];
  int32_t num_occurrences = 0;
  for (size_t word = 0; word < is_first.size(); ++word) {
    for (uint64_t left = is_first[word]; left != 0; left &= left - 1) {
      const uint8_t s = partitions[word * 64 + static_cast<size_t>(__builtin_ctzll(left))];
      const size_t u = static_cast<size_t>(next[s]++);
      const Found& found = found_[s];
      uniques_[static_cast<size_t>(found.first_unique) + u] = unique;
      batch->partitions[static_cast<size_t>(unique++)] = s;
      num_occurrences += found.start[u + 1] - found.start[u];
    }
  }
  return num_occurrences;
}

void BatchMerger::merge_inverse(size_t p, MergedBatch* batch) {
  const DealtIds::Piece& piece = dealt_.pieces()[p];
  std::array<const int32_t*, Partitioning::kMaxPartitions> inverse;
  std::array<const int32_t*, Partitioning::kMaxPartitions> uniques;
  for (size_t s = 0; s < num_; ++s) {
    inverse[s] = found_[s].inverse.data() + (dealt_.begin(p, s) - dealt_.begin(0, s));
    uniques[s] = uniques_.data() + found_[s].first_unique;
  }
  const uint8_t* partitions = dealt_.partitions() + piece.first;
  int32_t* out = batch->inverse.data() + piece.first;
  for (int32_t i = 0; i < piece.num_ids; ++i)
    out[i] = uniques[partitions[i]][*inverse[partitions[i]]++];
}

// The groups of the unique rows that first occur in piece `p`: from `first` on.
void BatchMerger::merge_groups(size_t p, int32_t first, MergedBatch* batch) {
  std::array<const int32_t*, Partitioning::kMaxPartitions> start;  // of each partition's next row
  std::array<const int32_t*, Partitioning::kMaxPartitions> grouped;
  for (size_t s = 0; s < num_; ++s) {
    start[s] = found_[s].start.data() + batch->partitions_unique[p * num_ + s];
    grouped[s] = grouped_.data() + dealt_.begin(0, s);
  }
  int32_t* out = batch->group.data() + first;
  for (int32_t u = batch->first_unique[p]; u < batch->first_unique[p + 1]; ++u) {
    const uint8_t s = batch->partitions[static_cast<size_t>(u)];
    batch->group_start[static_cast<size_t>(u)] = static_cast<int32_t>(out - batch->group.data());
    const int32_t* from = grouped[s] + start[s][0];
    const int32_t* end = grouped[s] + start[s][1];
    ++start[s];
    while (from != end) *out++ = *from++;
  }
}

}  // namespace te
