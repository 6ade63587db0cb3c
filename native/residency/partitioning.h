// Which partition a row belongs to, and what its own row ids and slots are called outside.
//
// A pool's rows are dealt to `num_partitions` planners: rows that share slots by a hash of their
// key, rows of whole tables in turn. Slots are dealt in turn too, region by region (whole, shared,
// overflow, the lower tier's), so that a pool that fills up touches its memory from the front.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "residency/planner.h"
#include "residency/row_table.h"

namespace te {

class Partitioning {
 public:
  static constexpr int kMaxPartitions = 256;  // a partition's number is kept in a byte

  // See make_planner. Throws std::invalid_argument.
  Partitioning(const PlannerOptions& options, int num_partitions)
      : options_(options),
        count_(num_partitions),
        cached_first_(options.whole_slots),
        overflow_first_(cached_first_ + options.cached_slots),
        lower_first_(overflow_first_ + options.overflow_slots) {
    while ((1 << bits_) < num_partitions) ++bits_;
    if (num_partitions < 1 || num_partitions > kMaxPartitions || (1 << bits_) != num_partitions) {
      throw std::invalid_argument("num_partitions is " + std::to_string(num_partitions) +
                                  "; it must be a power of two, at most 256");
    }
    if (!options.backed || options.cached_slots < count_ ||
        (options.lower_slots > 0 && options.lower_slots < count_)) {
      throw std::invalid_argument(
          "partitions need a store below, and at least one slot each in every tier");
    }
    for (int s = 0; s < count_; ++s) parts_.push_back(options_of(s));
  }

  int count() const { return count_; }
  const PlannerOptions& options() const { return options_; }
  // What the planner of partition `s` is made of.
  const PlannerOptions& part(int s) const { return parts_[static_cast<size_t>(s)]; }
  int64_t first_lower_slot() const { return lower_first_; }

  bool is_whole(int32_t table) const { return shape(table).first_slot >= 0; }
  uint32_t partition_of_whole(int32_t table, int64_t id) const {
    return static_cast<uint32_t>(id + table) & mask();
  }
  uint32_t partition_of_cached(int32_t table, int64_t id) const {
    const uint32_t h = RowTable::fixed_hash(static_cast<uint32_t>(table), id);
    return static_cast<uint32_t>((uint64_t{h * 0x9E3779B1u} << bits_) >> 32);
  }
  int64_t inner_id(int32_t table, int64_t id) const { return is_whole(table) ? id >> bits_ : id; }
  int64_t outer_id(int s, int32_t table, int64_t id) const {
    return is_whole(table) ? (id << bits_) + first_id(s, table) : id;
  }

  // `id` is the outer one.
  int32_t outer_slot(int s, int32_t table, int64_t id, int32_t slot) const {
    if (slot < 0) return slot;
    if (is_whole(table)) return static_cast<int32_t>(shape(table).first_slot + id);
    const PlannerOptions& mine = part(s);
    int64_t i = slot - mine.whole_slots;
    if (i < mine.cached_slots) return dealt(cached_first_, i, s);
    i -= mine.cached_slots;
    if (i < mine.overflow_slots) return dealt(overflow_first_, i, s);
    return dealt(lower_first_, i - mine.overflow_slots, s);
  }
  // Of the lower tier, counted from 0.
  int32_t outer_lower_slot(int s, int32_t slot) const {
    return slot < 0 ? slot : dealt(0, slot, s);
  }

 private:
  const TableShape& shape(int32_t table) const {
    return options_.tables[static_cast<size_t>(table)];
  }
  uint32_t mask() const { return static_cast<uint32_t>(count_) - 1; }
  int64_t share(int64_t n, int64_t turn) const { return (n - turn + count_ - 1) >> bits_; }
  int64_t first_id(int s, int32_t table) const {
    return static_cast<int64_t>(static_cast<uint32_t>(s - table) & mask());
  }
  int32_t dealt(int64_t first, int64_t i, int s) const {
    return static_cast<int32_t>(first + (i << bits_) + s);
  }

  PlannerOptions options_of(int s) const {
    PlannerOptions o = options_;
    o.whole_slots = 0;
    for (size_t t = 0; t < o.tables.size(); ++t) {
      TableShape& table = o.tables[t];
      if (table.first_slot < 0) continue;
      table.num_rows = share(table.num_rows, first_id(s, static_cast<int32_t>(t)));
      table.first_slot = o.whole_slots;
      o.whole_slots += table.num_rows;
    }
    o.cached_slots = share(options_.cached_slots, s);
    o.overflow_slots = share(options_.overflow_slots, s);
    o.lower_slots = share(options_.lower_slots, s);
    o.keeps_occurrences = false;
    return o;
  }

  const PlannerOptions options_;
  const int count_;
  int bits_ = 0;
  const int64_t cached_first_;
  const int64_t overflow_first_;
  const int64_t lower_first_;
  std::vector<PlannerOptions> parts_;
};

}  // namespace te
