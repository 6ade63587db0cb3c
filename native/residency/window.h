// The known future batches of one planner, and which rows they use.
//
// Positions: every unique row of every pushed batch gets a consecutive number, its position.
// Row::mark is the row's last position; `chain_` links each position to the row's next one. The
// deduplication of a batch and a row's next use are both read from these, so that an id costs one
// index lookup. Positions from a batch's plan until its release stay linked as well: a row's next
// use is asked for when its pin drops.
//
// A batch *aside* is deduplicated without joining the window: its rows get positions for that long,
// and then each row's earlier mark is put back, at a cost that does not depend on the window.
//
// Part of a planner, which holds its lock.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "core/plain_vector.h"
#include "core/virtual_array.h"
#include "residency/batch.h"
#include "residency/ids.h"
#include "residency/planner.h"
#include "residency/row_table.h"
#include "residency/upper_tier.h"

namespace te {

class Window {
 public:
  Window(RowTable* rows, UpperTier* tiers, const PlannerOptions& options);

  // Makes room for `n` more positions; `oldest` is the oldest one that a held plan still has, or 0.
  // Returns whether there are any left: if not, renumber first.
  bool reserve(int64_t n, uint32_t oldest);
  // Moves all positions down by the number that it returns.
  uint32_t renumber(uint32_t oldest);

  // Appends a batch. REQUIRES: `reserve` made room; ids lie inside their tables.
  void push(const std::vector<Segment>& segments);
  // Takes the oldest batch, which gets the next plan. REQUIRES: size() > 0.
  Batch take_oldest();
  // Drops every batch. Rows that nothing else knows are forgotten.
  void cancel();
  // After `cancel`, for each batch that has a plan and positions: its rows' marks and links start
  // from there again. `first_cancelled` is `base()` as it was before.
  void restore(uint32_t base, const PlainVector<RowHandle>& handles, uint32_t first_cancelled);

  // Deduplicates a batch without adding it. One at a time; `adopt` or `drop` must follow before
  // anything else is pushed. REQUIRES: as `push`.
  Batch push_aside(const std::vector<Segment>& segments);
  // The batch aside gets the next plan, ahead of the window, whose batches are planned one later.
  // Its rows keep their positions only where the window is empty, as if it had been pushed.
  void adopt(Batch* batch);
  // Everything is as before `push_aside`.
  void drop(Batch* batch);

  int64_t size() const { return static_cast<int64_t>(batches_.size()); }
  const Batch& oldest() const { return batches_.front(); }
  Batch* newest() { return &batches_.back(); }
  // The number of the next plan.
  int64_t next_plan() const { return next_plan_; }
  // First position of the window: a row's mark from here on says that the row has a use inside it.
  uint32_t base() const { return batches_.empty() ? next_position_ : batches_.front().base; }
  uint32_t next_position() const { return next_position_; }

  // The number of the first plan yet to be made that uses the row of `position`, whose last
  // position is `mark`. Where `position` is 0 or no link leads into the window, it is the row's
  // last use there: never too early. REQUIRES: mark >= base().
  int64_t next_use_after(uint32_t position, uint32_t mark) const;

  size_t bytes() const;

 private:
  Batch new_batch(int64_t num_ids) const;
  template <bool kAside>
  void dedupe(const std::vector<Segment>& segments, Batch* batch);
  void dedupe_whole(const Segment& segment, Batch* batch, int32_t* inverse);
  template <bool kAside>
  void dedupe_cached(const Segment& segment, Batch* batch, int32_t* inverse);
  uint32_t take_position() {
    const uint32_t position = next_position_++;
    link(position) = 0;
    return position;
  }
  uint32_t note_use(RowHandle r, int64_t plan_number);
  void put_back(const Batch& batch);
  void grow_chain();
  uint32_t& link(uint32_t position) { return chain_[position & (chain_.size() - 1)]; }
  uint32_t link(uint32_t position) const { return chain_[position & (chain_.size() - 1)]; }
  // Positions at which they must be renumbered.
  uint32_t last_position() const;

  RowTable& rows_;
  UpperTier& tiers_;
  const std::vector<TableShape> tables_;
  const bool has_cached_;               // some table is not whole
  VirtualArray<uint32_t> whole_marks_;  // by slot
  std::deque<Batch> batches_;           // oldest first
  int64_t next_plan_ = 0;
  uint32_t next_position_ = 1;
  uint32_t live_from_ = 1;             // the chain holds positions from here on
  std::vector<uint32_t> chain_;        // by position mod size; 0: no later use
  PlainVector<uint32_t> were_marked_;  // (U) of the batch aside: the marks to put back
};

}  // namespace te
