// What the pushed, planned and released batches of a planner say about every row: the truth that
// its plans and answers are compared with.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "residency/planner.h"
#include "tests/stress.h"

namespace te::stress {

using Key = std::pair<uint16_t, int64_t>;  // table, row id

struct PlannerSetup {
  PlannerOptions options;
  int64_t depth;
  int num_partitions = 1;
  int num_threads = 1;
  int64_t num_operations = 0;
  int64_t max_ids = 0;       // of a batch, per table
  bool some_unused = false;  // some batches are released although no forward used them

  int64_t num_slots() const { return options.num_upper_slots(); }
};

class PlannerModel {
 public:
  using Batch = std::vector<std::pair<uint16_t, std::vector<int64_t>>>;  // segments

  PlannerModel(const PlannerSetup& setup, Planner* planner)
      : setup_(setup),
        planner_(planner),
        twin_(make_planner(setup.options, setup.num_partitions, 1)),
        counts_(setup.options.tables.size()) {}

  size_t num_waiting() const { return window_.size(); }
  size_t num_held() const { return held_.size(); }

  void push(Batch batch) {
    planner_->push(segments(batch));
    twin_->push(segments(batch));
    window_.push_back(std::move(batch));
  }
  void cancel() {
    planner_->cancel();
    twin_->cancel();
    window_.clear();
  }
  void plan() {
    const Batch batch = std::move(window_.front());
    window_.pop_front();
    while (static_cast<int64_t>(recent_.size()) > setup_.depth) recent_.pop_front();
    const auto plan = planner_->plan(setup_.depth);
    check_same(*plan, *twin_->plan(setup_.depth));
    check(*plan, batch);
  }
  void plan_now(const Batch& batch) {
    recent_.clear();  // it plans at depth 0
    const auto plan = planner_->plan_now(segments(batch));
    check_same(*plan, *twin_->plan_now(segments(batch)));
    check(*plan, batch);
  }
  // A batch that needs more slots than there are.
  void refuse(Batch batch, Random* random) {
    std::vector<int64_t>& ids = batch[0].second;
    const int64_t first = random->below(int64_t{1} << 40);
    for (int64_t i = 0; i <= setup_.num_slots(); ++i) ids.push_back((first + i) * 0x10001);
    try {
      planner_->plan_now(segments(batch));
    } catch (const NoCapacity&) {
      return;
    }
    fail("a batch larger than the tier found room");
  }
  void release(size_t i, bool updated, bool used) {
    const auto it = held_.begin() + static_cast<int64_t>(i);
    planner_->release(it->number, updated, used);
    twin_->release(it->number, updated, used);
    if (!used) take_back(*it, &counts_);
    if (updated) dirty_.insert(it->keys.begin(), it->keys.end());
    held_.erase(it);
  }
  // As `find` tells it.
  int32_t slot_of(const Key& key) const {
    const auto it = lower_.find(key);
    if (it == lower_.end()) return slots_.at(key);
    return static_cast<int32_t>(planner_->first_lower_slot()) + it->second;
  }
  // Where an evaluation finds the rows of a batch.
  void look_up(const Batch& batch) const {
    const std::vector<Segment> asked = segments(batch);
    std::vector<int32_t> slots(static_cast<size_t>(num_ids_of(asked)));
    planner_->find(asked, slots.data(), setup_.num_threads);
    bool for_good = setup_.num_partitions == 1;
    for (const Segment& part : asked) {
      for_good &= setup_.options.tables[static_cast<size_t>(part.table)].first_slot >= 0;
    }
    for (const int32_t slot : slots) for_good &= slot != kNoSlot;
    TE_EXPECT(planner_->holds_for_good(asked, setup_.num_threads) == for_good,
              "rows are said to stay that may go, or the other way round");
    std::vector<int32_t> named = slots;
    const Rows missing = name_missing(asked, named.data());
    std::map<Key, int32_t> names;  // of rows without a slot, in order of first occurrence
    size_t i = 0;
    for (const auto& [table, ids] : batch) {
      for (int64_t id : ids) {
        const Key key{table, id};
        if (slots_.count(key) == 1 || lower_.count(key) == 1) {
          TE_EXPECT(slots[i] == slot_of(key) && named[i] == slots[i],
                    "a row is found where it is not");
        } else {
          const auto name =
              names.emplace(key, -1 - static_cast<int32_t>(names.size())).first->second;
          TE_EXPECT(slots[i] == kNoSlot && named[i] == name, "a missing row has slot %d", slots[i]);
          const auto m = static_cast<size_t>(-1 - name);
          TE_EXPECT(missing.tables[m] == table && missing.keys[m] == id, "another row is missing");
        }
        ++i;
      }
    }
    TE_EXPECT(missing.keys.size() == names.size() && missing.tables.size() == names.size(),
              "rows are missing that no one asked for");
  }
  int32_t slot_or_none(const Key& key) const {
    return lower_.count(key) == 1 || slots_.count(key) == 1 ? slot_of(key) : kNoSlot;
  }
  void check_dirty(const ResidentRows& rows) const {
    TE_EXPECT(rows.keys.size() == dirty_.size(), "%zu dirty rows, not %zu", rows.keys.size(),
              dirty_.size());
    for (size_t i = 0; i < rows.keys.size(); ++i) {
      const Key key{rows.tables[i], rows.keys[i]};
      TE_EXPECT(dirty_.count(key) == 1 && slot_of(key) == rows.slots[i], "a row is not dirty");
    }
  }
  void write_dirty() {
    check_dirty(planner_->dirty_rows());
    planner_->mark_clean();
    twin_->dirty_rows();
    twin_->mark_clean();
    for (const Key& key : dirty_) counts_[key.first].written_back += lower_.count(key) == 0;
    dirty_.clear();
  }
  void check_counts() const {
    check_counts(std::nullopt, counts_);
    std::vector<TableCounts> without = counts_;
    std::vector<int64_t> used;
    for (const Held& held : held_) {
      if (held.number % 2 == 0) {
        used.push_back(held.number);
      } else {
        take_back(held, &without);
      }
    }
    check_counts(used, without);
    TE_EXPECT(planner_->num_resident() == static_cast<int64_t>(slots_.size()),
              "the number of resident rows differs");
    TE_EXPECT(planner_->num_lower_resident() == static_cast<int64_t>(lower_.size()),
              "the number of rows in the lower tier differs");
  }

 private:
  struct Held {
    int64_t number;
    std::set<Key> keys;
    std::vector<TableCounts> uses;  // per table: what the plan added to the counts of uses
  };

  static void take_back(const Held& held, std::vector<TableCounts>* counts) {
    for (size_t t = 0; t < counts->size(); ++t) {
      (*counts)[t].lookups -= held.uses[t].lookups;
      (*counts)[t].unique -= held.uses[t].unique;
      (*counts)[t].misses -= held.uses[t].misses;
      (*counts)[t].overflow -= held.uses[t].overflow;
    }
  }

  void check_counts(const std::optional<std::vector<int64_t>>& used,
                    const std::vector<TableCounts>& expected) const {
    const std::vector<TableCounts> counts = planner_->counts(used);
    for (size_t t = 0; t < counts.size(); ++t) {
      const TableCounts &a = counts[t], &b = expected[t];
      TE_EXPECT(a.lookups == b.lookups && a.unique == b.unique && a.misses == b.misses &&
                    a.evicted == b.evicted && a.written_back == b.written_back &&
                    a.overflow == b.overflow,
                "the counts of table %zu differ", t);
    }
  }

  static void check_same(const StepPlan& a, const StepPlan& b) {
    TE_EXPECT(a.number == b.number && a.keys == b.keys && a.tables == b.tables &&
                  a.slots == b.slots && a.inverse == b.inverse && a.group == b.group &&
                  a.group_start == b.group_start && a.staged == b.staged &&
                  a.victim_keys == b.victim_keys && a.victim_tables == b.victim_tables &&
                  a.victim_slots == b.victim_slots && a.victim_dirty == b.victim_dirty &&
                  a.staged_from == b.staged_from && a.victim_to == b.victim_to &&
                  a.fallen_keys == b.fallen_keys && a.fallen_slots == b.fallen_slots &&
                  a.fallen_dirty == b.fallen_dirty && a.overflow == b.overflow,
              "plan %lld differs from the twin's", static_cast<long long>(a.number));
  }

  static std::vector<Segment> segments(const Batch& batch) {
    std::vector<Segment> out;
    for (const auto& [table, ids] : batch) {
      out.push_back({table, ids.data(), static_cast<int64_t>(ids.size())});
    }
    return out;
  }

  void check(const StepPlan& plan, const Batch& batch) {
    TE_EXPECT(plan_matches(plan, segments(batch)), "plan %lld is of another batch",
              static_cast<long long>(plan.number));
    check_groups(plan);
    std::set<Key> keys;
    for (size_t u = 0; u < plan.keys.size(); ++u) {
      TE_EXPECT(keys.insert({plan.tables[u], plan.keys[u]}).second, "a row is planned twice");
    }
    std::vector<TableCounts> uses(counts_.size());
    for (const auto& [table, ids] : batch) {
      uses[table].lookups += static_cast<int64_t>(ids.size());
    }
    for (const Key& key : keys) ++uses[key.first].unique;
    if (setup_.options.lower_slots > 0) make_room_below(plan);
    evict(plan, keys);
    fill(plan, keys.size(), &uses);
    for (size_t t = 0; t < counts_.size(); ++t) counts_[t].add(uses[t]);
    held_.push_back({plan.number, keys, std::move(uses)});
    recent_.push_back(std::move(keys));
  }

  static void check_groups(const StepPlan& plan) {
    TE_EXPECT(plan.group_start.size() == plan.keys.size() + 1, "groups and rows differ in number");
    TE_EXPECT(plan.group.size() == plan.inverse.size(), "occurrences are missing in the groups");
    for (size_t u = 0; u < plan.keys.size(); ++u) {
      for (int32_t i = plan.group_start[u]; i < plan.group_start[u + 1]; ++i) {
        const bool ascends = i == plan.group_start[u] || plan.group[i - 1] < plan.group[i];
        TE_EXPECT(ascends && plan.inverse[plan.group[i]] == static_cast<int32_t>(u),
                  "an occurrence is in the wrong group");
      }
    }
  }

  // What goes up and what falls leaves the lower tier before anything comes down.
  void make_room_below(const StepPlan& plan) {
    TE_EXPECT(plan.staged_from.size() == plan.staged.size(), "staged rows without an origin");
    for (size_t i = 0; i < plan.staged.size(); ++i) {
      const auto u = static_cast<size_t>(plan.staged[i]);
      const auto it = lower_.find({plan.tables[u], plan.keys[u]});
      TE_EXPECT(plan.staged_from[i] == (it == lower_.end() ? kNoSlot : it->second),
                "a row comes from a slot where it is not");
      if (it != lower_.end()) lower_.erase(it);
    }
    for (size_t f = 0; f < plan.fallen_keys.size(); ++f) {
      const Key key{plan.fallen_tables[f], plan.fallen_keys[f]};
      const auto it = lower_.find(key);
      TE_EXPECT(it != lower_.end() && it->second == plan.fallen_slots[f],
                "a row falls from a slot where it is not");
      TE_EXPECT((dirty_.erase(key) == 1) == (plan.fallen_dirty[f] != 0),
                "a fallen row's dirty bit is wrong");
      lower_.erase(it);
    }
  }

  void evict(const StepPlan& plan, const std::set<Key>& keys) {
    std::set<int32_t> taken;
    for (const auto& [key, slot] : lower_) taken.insert(slot);
    for (size_t v = 0; v < plan.victim_keys.size(); ++v) {
      const Key key{plan.victim_tables[v], plan.victim_keys[v]};
      TE_EXPECT(keys.count(key) == 0, "a victim belongs to its own plan");
      for (const Held& held : held_) {
        TE_EXPECT(held.keys.count(key) == 0, "a victim of plan %lld is held by plan %lld",
                  static_cast<long long>(plan.number), static_cast<long long>(held.number));
      }
      for (const std::set<Key>& pinned : recent_) {
        TE_EXPECT(pinned.count(key) == 0, "a victim was used inside the depth");
      }
      const auto it = slots_.find(key);
      TE_EXPECT(it != slots_.end() && it->second == plan.victim_slots[v],
                "a victim is not in its slot");
      const bool dirty = dirty_.count(key) == 1;
      TE_EXPECT(dirty == (plan.victim_dirty[v] != 0), "a victim's dirty bit is wrong");
      owners_.erase(it->second);
      slots_.erase(it);
      ++counts_[key.first].evicted;
      counts_[key.first].written_back += dirty;
      const int32_t to = plan.victim_to.empty() ? kNoSlot : plan.victim_to[v];
      if (to == kNoSlot) {
        dirty_.erase(key);
        continue;
      }
      TE_EXPECT(to >= 0 && to < setup_.options.lower_slots && taken.insert(to).second,
                "slot %d below was given to two rows", to);
      lower_[key] = to;
    }
  }

  void fill(const StepPlan& plan, size_t num_unique, std::vector<TableCounts>* uses) {
    TE_EXPECT(plan.slots.size() == num_unique, "rows without a slot");
    size_t next_staged = 0;
    int64_t overflow = 0;
    for (size_t u = 0; u < num_unique; ++u) {
      const Key key{plan.tables[u], plan.keys[u]};
      const int32_t slot = plan.slots[u];
      const bool staged =
          next_staged < plan.staged.size() && plan.staged[next_staged] == static_cast<int32_t>(u);
      next_staged += staged;
      TE_EXPECT(staged == (slots_.count(key) == 0), "staged rows are not the missing ones");
      if (!staged) {
        TE_EXPECT(slots_.at(key) == slot, "a resident row changed its slot");
        continue;
      }
      TE_EXPECT(slot >= 0 && slot < setup_.num_slots(), "slot %d does not exist", slot);
      TE_EXPECT(owners_.emplace(slot, key).second, "slot %d was given to two rows", slot);
      slots_[key] = slot;
      const bool transient = slot >= setup_.options.whole_slots + setup_.options.cached_slots;
      overflow += transient;
      (*uses)[key.first].overflow += transient;
      ++(*uses)[key.first].misses;
    }
    TE_EXPECT(next_staged == plan.staged.size(), "staged rows that the batch lacks");
    TE_EXPECT(plan.overflow == overflow, "overflow is counted wrong");
  }

  const PlannerSetup& setup_;
  Planner* const planner_;
  const std::unique_ptr<Planner> twin_;
  std::deque<Batch> window_;
  std::vector<Held> held_;            // planned, not released
  std::deque<std::set<Key>> recent_;  // the last plans that the depth pins
  std::map<Key, int32_t> slots_;      // of resident rows
  std::map<int32_t, Key> owners_;     // the same, turned round
  std::map<Key, int32_t> lower_;      // slots of rows in the lower tier, from 0
  std::set<Key> dirty_;
  std::vector<TableCounts> counts_;
};

}  // namespace te::stress
