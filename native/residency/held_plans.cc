#include "residency/held_plans.h"

#include <algorithm>
#include <utility>

namespace te {
namespace {

constexpr uint32_t kForgetAfter = 1u << 22;  // positions; 16 MiB of chain

}  // namespace

void HeldPlans::add(int64_t number, Batch batch) {
  TE_CHECK(held_.empty() || held_.back().number < number, "plans are numbered in order");
  held_.push_back({number, batch.base, std::move(batch.handles), std::move(batch.uses)});
}

HeldPlans::Held* HeldPlans::find(int64_t number) {
  const auto it = std::lower_bound(held_.begin(), held_.end(), number,
                                   [](const Held& held, int64_t n) { return held.number < n; });
  return it == held_.end() || it->number != number ? nullptr : &*it;
}

void HeldPlans::drop_pins(int64_t end, const Window& window) {
  for (auto it = held_.begin(); it != held_.end() && it->number < end;) {
    if (it->released) {
      note_update(&*it);
      unpin(*it, window);
      it = held_.erase(it);
    } else {
      // One output kept for ever would otherwise keep every later position alive.
      if (window.next_position() - it->base > kForgetAfter) it->base = 0;
      ++it;
    }
  }
}

void HeldPlans::unpin(const Held& held, const Window& window) {
  if (whole_.is_everything()) return;  // no row was ever listed
  RowTable& rows = rows_;
  const uint32_t base = window.base();
  for (size_t u = 0; u < held.handles.size(); ++u) {
    const RowHandle r = held.handles[u];
    prefetch_row(rows, held.handles, u);
    if (is_whole(r)) continue;
    Row& row = rows[r];
    const uint32_t position = held.base == 0 ? 0 : held.base + static_cast<uint32_t>(u);
    const bool is_last = row.pins == 1 && row.mark >= base;
    tier_.unpin(r, row, is_last ? window.next_use_after(position, row.mark) : kNever);
  }
}

void HeldPlans::note_updates() {
  for (Held& held : held_) {
    if (held.released) note_update(&held);
  }
}

void HeldPlans::note_update(Held* held) {
  if (!held->updated || held->noted) return;
  held->noted = true;
  const bool all_whole = whole_.is_everything();
  if (all_whole && whole_.all_dirty()) return;
  for (size_t u = 0; u < held->handles.size(); ++u) {
    const RowHandle r = held->handles[u];
    if (!all_whole) prefetch_row(rows_, held->handles, u);
    if (is_whole(r)) {
      prefetch_flag(whole_, held->handles, u);
      whole_.set_dirty(whole_slot(r));
    } else {
      rows_[r].dirty = 1;
    }
  }
}

int64_t HeldPlans::num_staying(int64_t next, int64_t depth) const {
  return std::count_if(held_.begin(), held_.end(), [&](const Held& held) {
    return !held.released || held.number >= next - depth;
  });
}

uint32_t HeldPlans::oldest_position() const {
  for (const Held& held : held_) {
    if (held.base != 0) return held.base;
  }
  return 0;
}

void HeldPlans::renumber(uint32_t shift) {
  for (Held& held : held_) {
    if (held.base != 0) held.base -= shift;
  }
}

void HeldPlans::restore(Window* window, uint32_t first_cancelled) const {
  for (const Held& held : held_) {
    if (held.base != 0) window->restore(held.base, held.handles, first_cancelled);
  }
}

size_t HeldPlans::bytes() const {
  size_t bytes = 0;
  for (const Held& held : held_) bytes += held.handles.capacity() * 4;
  return bytes;
}

}  // namespace te
