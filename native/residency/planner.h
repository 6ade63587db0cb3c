// Decides which row is where, for one pool: in the tier that computes and, where there is one, in
// the LowerTier that takes its victims. Never looks at a clock.
//
// Batches of ids enter the window by `push`; `plan` turns the oldest into a StepPlan. Positions:
// every unique row of every pushed batch gets a consecutive number, its position. Row::mark is the
// row's last one; `chain_` links each position to the row's next. Both the deduplication of a batch
// and the next use of a row are read from them, so that an id costs one index lookup.
//
// Threading: every public method locks; the caller orders `push`, `plan`, `release` and `cancel`.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/plain_vector.h"
#include "core/virtual_array.h"
#include "residency/ids.h"
#include "residency/lower_tier.h"
#include "residency/policy.h"
#include "residency/row_table.h"
#include "residency/step_plan.h"

namespace te {

struct TableShape {
  int64_t num_rows;    // -1: any int64 is a row id
  int64_t first_slot;  // >= 0: the whole table lives at [first_slot, first_slot + num_rows)
};

struct PlannerOptions {
  std::vector<TableShape> tables;
  int64_t whole_slots = 0;     // slots of whole tables, [0, whole_slots)
  int64_t cached_slots = 0;    // slots that the other tables share
  int64_t overflow_slots = 0;  // transient slots behind those
  int64_t lower_slots = 0;     // of the tier below, if it takes what loses its slot here
  std::string policy = "lookahead";
  bool backed = true;  // a store at the bottom takes evicted rows
  // Plans tell where each row occurs; else the caller does, by `take_occurrences`.
  bool keeps_occurrences = true;
};

// The tier has no room and nothing below it. `needed` slots are missing.
struct NoCapacity : std::runtime_error {
  NoCapacity(int64_t n, int64_t slots)
      : std::runtime_error("no capacity"), needed(n), num_slots(slots) {}
  int64_t needed;
  int64_t num_slots;
};

// More plans are held than pins can count.
struct TooManyHeld : std::runtime_error {
  explicit TooManyHeld(int64_t n) : std::runtime_error("too many plans are held"), num_plans(n) {}
  int64_t num_plans;
};

struct ResidentRows {
  std::vector<uint16_t> tables;
  std::vector<int64_t> keys;
  std::vector<int32_t> slots;
};

class Planner {
 public:
  explicit Planner(PlannerOptions options);

  // Appends a batch to the window. REQUIRES: ids lie inside their tables.
  void push(const std::vector<Segment>& segments);

  // Plans the oldest batch of the window. Slots used by the last `depth` plans and by plans that
  // are not released yet stay pinned. Throws NoCapacity, with nothing changed, when neither free,
  // evictable nor overflow slots suffice. REQUIRES: the window is not empty.
  std::shared_ptr<StepPlan> plan(int64_t depth);

  // Plans a batch alone, ahead of whatever the window holds. When it throws, the window is as if it
  // had been cancelled and pushed again.
  std::shared_ptr<StepPlan> plan_now(const std::vector<Segment>& segments);

  // The parts of `plan_now`, for who plans with several planners: the batch comes ahead of the
  // window until it is planned or taken back.
  void push_ahead(const std::vector<Segment>& segments);
  void take_back_ahead();

  // Of the batch pushed last, or (`ahead`) the oldest, moves out the index into its unique rows of
  // every occurrence; returns their number.
  int32_t take_occurrences(bool ahead, PlainVector<int32_t>* inverse);

  // Whether `plan(depth)` would throw, and with which number; 0: it would not. Changes nothing, and
  // is told at once where free slots suffice. REQUIRES: the pool is backed.
  int64_t num_missing(int64_t depth);     // NoCapacity
  int64_t num_held(int64_t depth) const;  // TooManyHeld

  // The batch of plan `number` is done; `updated` says that its rows were changed.
  void release(int64_t number, bool updated);

  // Drops every batch of the window that has no plan yet.
  void cancel();

  // The slot of each id, kNoSlot where the row is not resident. The lower tier's slots lie behind
  // this one's, from `first_lower_slot` on.
  void find(int32_t table, const int64_t* ids, int64_t n, int32_t* slots);

  // Rows that the store does not hold as they are here, updates of released plans included; slots
  // as in `find`.
  ResidentRows dirty_rows();
  // They have been written back.
  void mark_clean();

  std::vector<TableCounts> counts() const;
  std::vector<TableCounts> lower_counts() const;  // empty without a lower tier
  int64_t first_lower_slot() const { return lower_first_; }
  int64_t num_lower_resident() const;
  int64_t window_size() const;
  int64_t num_resident() const;
  // Every row of the pool is in its slot for good: no plan stages or evicts.
  bool all_resident() const;
  int64_t overhead_bytes() const;

  // Renumbers positions from the start; done by itself before they run out.
  void renumber();

 private:
  static constexpr uint32_t kWhole = 0x80000000u;  // handle bit: slot of a whole table

  struct Batch {
    uint32_t base = 0;               // position of its first unique row
    PlainVector<RowHandle> handles;  // (U)
    PlainVector<uint16_t> tables;    // (U); empty in a pool of one table
    PlainVector<int32_t> inverse;    // (N)
    std::vector<int64_t> lookups;    // per table
    std::vector<int64_t> unique;     // per table
    int32_t num_unique = 0;

    void add(RowHandle row, int32_t table) {
      handles[static_cast<size_t>(num_unique)] = row;
      if (!tables.empty()) tables[static_cast<size_t>(num_unique)] = static_cast<uint16_t>(table);
      ++num_unique;
    }
    uint16_t table(size_t u) const { return tables.empty() ? uint16_t{0} : tables[u]; }
    void trim();  // to num_unique rows, once all are known
  };
  struct Planned {
    int64_t number;
    uint32_t base;  // 0: held back for so long that its positions are forgotten
    PlainVector<RowHandle> handles;
    bool released = false;
    bool updated = false;
    bool settled = false;  // `updated` has reached the rows' dirty bits
  };

  // What `push_ahead` put behind its batch: to be pushed again when that is taken back.
  struct Later {
    std::deque<Batch> batches;
    std::vector<std::vector<int64_t>> keys;
  };

  void push_locked(const std::vector<Segment>& segments);
  std::shared_ptr<StepPlan> plan_locked(int64_t depth);
  void cancel_locked();
  void renumber_locked();
  void push_ahead_locked(const std::vector<Segment>& segments);
  void take_back_ahead_locked();
  void push_later();
  void forget_later();
  int64_t num_held_locked(int64_t depth) const;
  void push_again(Batch batch, const std::vector<int64_t>& keys);
  void dedupe_whole(const Segment& segment, Batch* batch, int32_t* inverse);
  void dedupe_cached(const Segment& segment, Batch* batch, int32_t* inverse);
  // Fetches what a loop over `handles` needs a little after `u`: a cached row, or a whole one's
  // flag.
  void prefetch_row(const PlainVector<RowHandle>& handles, size_t u) const {
    constexpr size_t kAhead = 16;
    if (u + kAhead >= handles.size()) return;
    const RowHandle r = handles[u + kAhead];
    if (!(r & kWhole)) __builtin_prefetch(&rows_[r], 1);
  }
  void prefetch_flag(const PlainVector<RowHandle>& handles, size_t u) const {
    constexpr size_t kAhead = 64;
    if (u + kAhead >= handles.size()) return;
    const RowHandle r = handles[u + kAhead];
    if (r & kWhole) __builtin_prefetch(&whole_flags_[r & ~kWhole], 0, 2);
  }
  void note_use(RowHandle r, int64_t plan_number);
  uint32_t take_position();
  void reserve_positions(int64_t n);
  void grow_chain();
  uint32_t window_base() const { return window_.empty() ? next_position_ : window_.front().base; }
  uint32_t oldest_live_position() const;
  int64_t next_use_after(uint32_t position, uint32_t mark) const;
  void settle(Planned* planned);
  void unpin(Planned* planned);
  void pin(RowHandle r);
  void drop_pin(RowHandle r, int64_t next_use);
  void name_rows(const Batch& batch, StepPlan* plan);
  // Whether the row is in the tier that computes.
  bool here(const Row& row) const { return static_cast<uint32_t>(row.slot) < lower_first_; }
  void reschedule(RowHandle r, int64_t next_use);
  void evict(RowHandle r, int64_t next_use, StepPlan* plan);
  void note_misses(const StepPlan& plan, const Batch& batch);
  int64_t shortage(const Batch& batch, int64_t depth);
  // Whether the row, unpinned, keeps its slot for good: it was changed and no tier lies below.
  bool stays(const Row& row) const { return !options_.backed && !lower_ && row.dirty; }
  int64_t num_free() const;
  int64_t num_free_overflow() const;
  int64_t key_of(RowHandle handle, uint16_t table) const;

  const PlannerOptions options_;
  const bool all_whole_;        // every table is whole: each handle is a slot
  const uint32_t lower_first_;  // slots from here on are the lower tier's
  mutable std::mutex mutex_;    // guards all below
  RowTable rows_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::unique_ptr<LowerTier> lower_;  // or none
  int64_t num_listed_ = 0;

  VirtualArray<uint32_t> whole_marks_;  // by slot
  VirtualArray<uint8_t> whole_flags_;   // by slot: kResident, kDirty
  int64_t num_whole_resident_ = 0;
  int64_t num_whole_dirty_ = 0;

  int64_t fresh_slot_;               // next never-used cached slot
  std::vector<int32_t> free_slots_;  // cached slots given back
  int64_t fresh_overflow_;
  std::vector<int32_t> free_overflow_;

  struct Transient {
    RowHandle row;
    int64_t next_use;
  };
  std::vector<Transient> transient_;  // while a plan is made: unpinned rows in overflow slots

  std::deque<Batch> window_;
  Later later_;
  std::deque<Planned> planned_;  // pinned, oldest first
  int64_t next_plan_ = 0;

  uint32_t next_position_ = 1;
  uint32_t live_from_ = 1;       // the chain holds positions from here on
  std::vector<uint32_t> chain_;  // by position mod size; 0: no later use
  std::vector<TableCounts> counts_;
};

}  // namespace te
