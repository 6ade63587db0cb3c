// The plans that still pin their rows, oldest first.
//
// A plan is held until its batch is released and `depth` more plans have been made; then each of
// its rows drops a pin. That a batch changed its rows reaches their dirty bits at that moment, or
// when somebody asks which rows are dirty.
//
// Part of a planner, which holds its lock.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "core/plain_vector.h"
#include "residency/batch.h"
#include "residency/row_table.h"
#include "residency/upper_tier.h"
#include "residency/whole_tables.h"
#include "residency/window.h"

namespace te {

class HeldPlans {
 public:
  struct Held {
    int64_t number;
    uint32_t
        base;  // as Batch has it; 0 too where the plan was held for so long that it is forgotten
    PlainVector<RowHandle> handles;
    std::vector<UseCounts> uses;
    bool released = false;
    bool updated = false;
    bool noted = false;  // `updated` has reached the rows' dirty bits
  };

  HeldPlans(RowTable* rows, UpperTier* tier, WholeTables* whole)
      : rows_(*rows), tier_(*tier), whole_(*whole) {}

  // The batch has been planned under `number`, and its rows are pinned.
  void add(int64_t number, Batch batch);

  // The plan of that number, or nullptr where it is not held.
  Held* find(int64_t number);
  const Held* find(int64_t number) const { return const_cast<HeldPlans*>(this)->find(number); }

  // Released plans below `end` drop their pins. Of the others, those that lie far before the window
  // forget their positions.
  void drop_pins(int64_t end, const Window& window);

  // Dirty bits of the rows of released plans.
  void note_updates();

  // How many plans will stay held when `next` is planned at `depth`.
  int64_t num_staying(int64_t next, int64_t depth) const;
  size_t size() const { return held_.size(); }

  // Calls fn(plan) for every plan, oldest first.
  template <typename Fn>
  void for_each(const Fn& fn) const {
    for (const Held& held : held_) fn(held);
  }

  // Calls fn(plan) for every plan that `drop_pins(end)` would drop.
  template <typename Fn>
  void for_each_leaving(int64_t end, const Fn& fn) const {
    for (const Held& held : held_) {
      if (held.number >= end) break;
      if (held.released) fn(held);
    }
  }

  // The oldest position that a plan still has, or 0.
  uint32_t oldest_position() const;
  void renumber(uint32_t shift);
  // See Window::restore.
  void restore(Window* window, uint32_t first_cancelled) const;

  size_t bytes() const;

 private:
  void note_update(Held* held);
  void unpin(const Held& held, const Window& window);

  RowTable& rows_;
  UpperTier& tier_;
  WholeTables& whole_;
  std::deque<Held> held_;
};

}  // namespace te
