// A batch's ids, dealt to the partitions of a planner.
//
// Legend: N occurrences in lookup order, S partitions, P pieces: runs of one table's occurrences
// that a thread takes at a time. All arrays are reused by the next `deal`. Not thread-safe; the
// planner that owns it locks.
#pragma once

#include <cstdint>
#include <vector>

#include "core/plain_vector.h"
#include "residency/partitioning.h"

namespace te {

class DealtIds {
 public:
  struct Piece {
    int32_t table;
    const int64_t* ids;
    int32_t first;  // occurrence
    int32_t num_ids;
  };
  static constexpr int64_t kPieceIds = 8192;

  explicit DealtIds(const Partitioning* partitioning) : partitioning_(partitioning) {}

  // Deals the ids to partitions, keeping their order. REQUIRES: ids lie inside their tables.
  void deal(const std::vector<Segment>& segments, int num_threads);

  const std::vector<Piece>& pieces() const { return pieces_; }
  size_t num_ids() const { return num_ids_; }

  // (N) the partition of each occurrence
  const uint8_t* partitions() const { return partitions_.data(); }
  // What partition `s` gets stands at [begin(0, s), begin(P, s)) of the next two arrays, piece
  // after piece.
  int32_t begin(size_t piece, size_t s) const { return begins_[piece * num_partitions() + s]; }
  const int64_t* ids() const { return ids_.data(); }  // (N) as the partition calls them
  const int32_t* occurrences() const { return occurrences_.data(); }  // (N) where they stood
  // The same as the partition's planner takes it. Good until the next `deal`.
  std::vector<Segment> segments_of(size_t s) const;

  size_t bytes() const {
    return partitions_.capacity() + ids_.capacity() * 8 + occurrences_.capacity() * 4;
  }

 private:
  size_t num_partitions() const { return static_cast<size_t>(partitioning_->count()); }
  void count_piece(size_t p);
  void deal_piece(size_t p);

  const Partitioning* const partitioning_;
  size_t num_ids_ = 0;
  std::vector<Piece> pieces_;
  std::vector<int32_t> begins_;  // (P + 1, S)
  PlainVector<uint8_t> partitions_;
  PlainVector<int64_t> ids_;
  PlainVector<int32_t> occurrences_;
};

}  // namespace te
