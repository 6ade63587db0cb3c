// Least frequently used, where a use counts half as much after some time.
//
// A row's heat is the logarithm of its decayed count of uses, in half halvings, as in LRFU (Lee et
// al., "LRFU: A spectrum of policies that subsumes the least recently used and least frequently
// used policies", IEEE Transactions on Computers 2001). Time is counted in uses, one per row and
// batch; a count halves in 5 uses per slot. So all heats fall by one step each 2.5 uses per slot:
// one pass over an array of bytes, which costs less than a byte per use. The coldest row goes
// first, and of equally cold ones the one listed first.
//
// Evicted rows are remembered: without that, a row whose uses are farther apart than its stay would
// look new every time. State: 1 byte per slot, and 1 for half a remembered row.
#include <algorithm>
#include <array>
#include <vector>

#include "core/check.h"
#include "core/virtual_array.h"
#include "residency/policy.h"

namespace te {
namespace {

constexpr uint32_t kHottest = 15;
constexpr int64_t kUsesPerStep = 5;  // in half slots

// The heat after a use: 10 + 2·log2(1 + 2^((heat − 10) / 2)), rounded. 10 is one use, now; 0 is an
// unknown row, 1 one that has not been used for long. It stays at 15, about eight uses.
constexpr std::array<uint8_t, kHottest + 1> kAfterUse = {10, 10, 10, 10, 10, 10, 11, 11,
                                                         11, 12, 12, 13, 13, 14, 15, 15};

// Heats of evicted rows, in sets of four by hash: 12 bits of fingerprint and 4 of heat each. The
// coldest of a set gives way, so the memory is bounded; one unknown row in a thousand is mistaken.
class Ghosts {
 public:
  explicit Ghosts(int64_t num_slots)
      : num_sets_(static_cast<size_t>((num_slots + 7) / 8)), entries_(num_sets_ * kWays) {}

  void put(uint32_t hash, uint32_t heat) {
    empty_ = false;
    uint16_t* set = set_of(hash);
    uint16_t* coldest = set;
    for (size_t i = 1; i < kWays; ++i) {
      if ((set[i] & kHeat) < (*coldest & kHeat)) coldest = set + i;
    }
    if ((*coldest & kHeat) > heat) return;
    *coldest = static_cast<uint16_t>(hash << 4 | heat);
  }

  // The heat of the row, which is forgotten; 0 when it is unknown.
  uint32_t take(uint32_t hash) {
    if (empty_) return 0;
    uint16_t* set = set_of(hash);
    for (size_t i = 0; i < kWays; ++i) {
      if ((set[i] & kHeat) == 0 || set[i] >> 4 != (hash & 0xFFFu)) continue;
      const uint32_t heat = set[i] & kHeat;
      set[i] = 0;
      return heat;
    }
    return 0;
  }

  void cool() {
    if (empty_) return;
    uint16_t* e = entries_.data();
    for (size_t i = 0; i < entries_.capacity(); ++i) {
      e[i] = static_cast<uint16_t>(e[i] - ((e[i] & kHeat) > 1));
    }
  }

  size_t bytes() const { return empty_ ? 0 : entries_.bytes(); }

 private:
  static constexpr size_t kWays = 4;
  static constexpr uint32_t kHeat = 15;

  uint16_t* set_of(uint32_t hash) {
    return entries_.data() + ((uint64_t{hash} * num_sets_) >> 32) * kWays;
  }

  size_t num_sets_;
  VirtualArray<uint16_t> entries_;
  bool empty_ = true;  // its pages have not been touched
};

class Lfu final : public EvictionPolicy {
 public:
  explicit Lfu(const PolicySpace& space)
      : space_(space),
        uses_per_step_(std::max<int64_t>(1, space.num_slots * kUsesPerStep / 2)),
        heats_(space.num_indices()),
        ghosts_(space.num_slots) {
    for (uint32_t i = 0; i <= kHottest; ++i) lists_.emplace_back(space.rows);
  }

  void use(RowHandle row) override {
    if (++num_uses_ == uses_per_step_) cool();
    const size_t i = space_.index(row);
    num_heats_ = std::max(num_heats_, i + 1);
    uint32_t heat = heats_[i];
    if (heat == 0) heat = ghosts_.take(hash(row));
    heats_[i] = kAfterUse[heat];
  }

  void insert(RowHandle row, int64_t) override {
    TE_CHECK(heats_[space_.index(row)] != 0, "the row has been used in its slot");
    list(heats_[space_.index(row)]).push_back(row);
  }
  void remove(RowHandle row) override { RowList::unlink(space_.rows, row); }
  void reschedule(RowHandle, int64_t) override {}

  RowHandle evict(int64_t* next_use) override {
    *next_use = kNever;
    for (uint32_t heat = 1; heat <= kHottest; ++heat) {
      if (list(heat).empty()) continue;
      const RowHandle row = list(heat).front();
      remove(row);
      return row;
    }
    return kNoRow;
  }

  void leave(RowHandle row) override {
    const size_t i = space_.index(row);
    ghosts_.put(hash(row), heats_[i]);
    heats_[i] = 0;
  }

  void advance(int64_t) override {}
  size_t bytes() const override { return num_heats_ + ghosts_.bytes(); }

 private:
  uint32_t hash(RowHandle r) const {
    const Row& row = (*space_.rows)[r];
    return RowTable::fixed_hash(row.table, row.id());
  }

  RowList& list(uint32_t heat) { return lists_[(coolest_ + heat) & kHottest]; }

  // One step: every heat falls by one, but not below 1.
  void cool() {
    num_uses_ = 0;
    uint8_t* heats = heats_.data();
    for (size_t i = 0; i < num_heats_; ++i) {
      heats[i] = static_cast<uint8_t>(heats[i] - (heats[i] > 1));
    }
    ghosts_.cool();
    list(2).take_front(&list(1));
    ++coolest_;
  }

  const PolicySpace space_;
  const int64_t uses_per_step_;
  int64_t num_uses_ = 0;         // since the last step
  VirtualArray<uint8_t> heats_;  // by slot; 0: no row that was used
  size_t num_heats_ = 0;         // all after these are 0
  Ghosts ghosts_;
  std::vector<RowList> lists_;  // by heat, from `coolest_` on, around the end
  uint32_t coolest_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lfu(const PolicySpace& space) {
  return std::make_unique<Lfu>(space);
}

}  // namespace te
