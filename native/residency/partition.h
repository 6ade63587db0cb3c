// A batch's ids, told apart by shard.
//
// Legend: N occurrences in lookup order, S shards, P pieces: runs of one table's occurrences that a
// thread takes at a time. All arrays are used again by the next `cut`. Not thread-safe; the
// planner that owns it locks.
#pragma once

#include <cstdint>
#include <vector>

#include "core/plain_vector.h"
#include "residency/sharding.h"

namespace te {

class Partition {
 public:
  struct Piece {
    int32_t table;
    const int64_t* ids;
    int32_t first;  // occurrence
    int32_t num_ids;
  };
  static constexpr int64_t kPieceIds = 8192;

  explicit Partition(const Sharding* sharding) : sharding_(sharding) {}

  // Deals the ids to shards, keeping their order. REQUIRES: ids lie inside their tables.
  void cut(const std::vector<Segment>& segments, int num_threads);

  const std::vector<Piece>& pieces() const { return pieces_; }
  size_t num_ids() const { return num_ids_; }

  // (N) the shard of each occurrence
  const uint8_t* shards() const { return shards_.data(); }
  // What shard `s` gets stands at [begin(0, s), begin(P, s)) of the next two arrays, piece after
  // piece.
  int32_t begin(size_t piece, size_t s) const { return begins_[piece * num_shards() + s]; }
  const int64_t* ids() const { return ids_.data(); }                  // (N) as the shard calls them
  const int32_t* occurrences() const { return occurrences_.data(); }  // (N) where they stood
  // The same as the shard's planner takes it. Good until the next `cut`.
  std::vector<Segment> segments_of(size_t s) const;

  size_t bytes() const {
    return shards_.capacity() + ids_.capacity() * 8 + occurrences_.capacity() * 4;
  }

 private:
  size_t num_shards() const { return static_cast<size_t>(sharding_->count()); }
  void count(size_t p);
  void deal(size_t p);

  const Sharding* const sharding_;
  size_t num_ids_ = 0;
  std::vector<Piece> pieces_;
  std::vector<int32_t> begins_;  // (P + 1, S)
  PlainVector<uint8_t> shards_;
  PlainVector<int64_t> ids_;
  PlainVector<int32_t> occurrences_;
};

}  // namespace te
