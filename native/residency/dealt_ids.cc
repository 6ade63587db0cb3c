#include "residency/dealt_ids.h"

#include <algorithm>
#include <array>

#include "core/check.h"
#include "core/thread_pool.h"

namespace te {

void DealtIds::deal(const std::vector<Segment>& segments, int num_threads) {
  const size_t num = num_partitions();
  pieces_.clear();
  num_ids_ = 0;
  for (const Segment& s : segments) {
    for (int64_t at = 0; at < s.num_ids; at += kPieceIds) {
      const int64_t n = std::min(kPieceIds, s.num_ids - at);
      pieces_.push_back(
          {s.table, s.ids + at, static_cast<int32_t>(num_ids_), static_cast<int32_t>(n)});
      num_ids_ += static_cast<size_t>(n);
    }
  }
  partitions_.resize(num_ids_);
  ids_.resize(num_ids_);
  occurrences_.resize(num_ids_);
  begins_.resize((pieces_.size() + 1) * num);

  const int64_t num_pieces = static_cast<int64_t>(pieces_.size());
  parallel_for(num_pieces, num_threads, [&](int64_t p) { count_piece(static_cast<size_t>(p)); });
  // Counts become starts.
  std::array<int32_t, Partitioning::kMaxPartitions> at{};
  for (size_t p = 0; p < pieces_.size(); ++p) {
    for (size_t s = 0; s < num; ++s) at[s] += begins_[p * num + s];
  }
  int32_t sum = 0;
  for (size_t s = 0; s < num; ++s) {
    const int32_t mine = at[s];
    at[s] = sum;
    sum += mine;
  }
  for (size_t p = 0; p <= pieces_.size(); ++p) {
    for (size_t s = 0; s < num; ++s) {
      const int32_t n = p < pieces_.size() ? begins_[p * num + s] : 0;
      begins_[p * num + s] = at[s];
      at[s] += n;
    }
  }
  parallel_for(num_pieces, num_threads, [&](int64_t p) { deal_piece(static_cast<size_t>(p)); });
}

void DealtIds::count_piece(size_t p) {
  const Piece& piece = pieces_[p];
  TE_CHECK(first_bad_id(piece.ids, piece.num_ids,
                        partitioning_->options().tables[piece.table].num_rows) < 0,
           "ids lie inside their tables");
  uint8_t* partitions = partitions_.data() + piece.first;
  std::array<int32_t, Partitioning::kMaxPartitions> counts{};
  const auto count_by = [&](const auto& partition_of) {
    for (int32_t i = 0; i < piece.num_ids; ++i) {
      const uint32_t s = partition_of(piece.ids[i]);
      partitions[i] = static_cast<uint8_t>(s);
      ++counts[s];
    }
  };
  if (partitioning_->is_whole(piece.table)) {
    count_by([&](int64_t id) { return partitioning_->partition_of_whole(piece.table, id); });
  } else {
    count_by([&](int64_t id) { return partitioning_->partition_of_cached(piece.table, id); });
  }
  std::copy_n(counts.begin(), num_partitions(),
              begins_.begin() + static_cast<int64_t>(p * num_partitions()));
}

void DealtIds::deal_piece(size_t p) {
  const Piece& piece = pieces_[p];
  const uint8_t* partitions = partitions_.data() + piece.first;
  std::array<int32_t, Partitioning::kMaxPartitions> at;
  std::copy_n(begins_.begin() + static_cast<int64_t>(p * num_partitions()), num_partitions(),
              at.begin());
  const auto deal_by = [&](const auto& inner_id) {
    for (int32_t i = 0; i < piece.num_ids; ++i) {
      const int32_t to = at[partitions[i]]++;
      ids_[static_cast<size_t>(to)] = inner_id(piece.ids[i]);
      occurrences_[static_cast<size_t>(to)] = piece.first + i;
    }
  };
  if (partitioning_->is_whole(piece.table)) {
    deal_by([&](int64_t id) { return partitioning_->inner_id(piece.table, id); });
  } else {
    deal_by([](int64_t id) { return id; });
  }
}

std::vector<Segment> DealtIds::segments_of(size_t s) const {
  std::vector<Segment> out;
  for (size_t p = 0; p < pieces_.size(); ++p) {
    const int32_t n = begin(p + 1, s) - begin(p, s);
    if (n == 0) continue;
    if (!out.empty() && out.back().table == pieces_[p].table) {
      out.back().num_ids += n;
    } else {
      out.push_back({pieces_[p].table, ids_.data() + begin(p, s), n});
    }
  }
  return out;
}

}  // namespace te
