// Belady's rule inside the window, a base policy beyond it.
//
// Source of the rule: Belady, "A study of replacement algorithms for a virtual-storage computer",
// IBM Systems Journal 1966. One list per future plan holds the evictable rows whose next use it is.
#include <deque>
#include <vector>

#include "residency/policy.h"

namespace te {
namespace {

class Lookahead final : public EvictionPolicy {
 public:
  Lookahead(RowTable* rows, std::unique_ptr<EvictionPolicy> base)
      : rows_(rows), base_(std::move(base)) {}

  void use(RowHandle row) override { base_->use(row); }

  void insert(RowHandle row, int64_t next_use) override {
    if (next_use == kNever) {
      base_->insert(row, kNever);
    } else {
      bucket(next_use).push_back(row);
      (*rows_)[row].scheduled = 1;
    }
  }

  void remove(RowHandle row) override {
    if ((*rows_)[row].scheduled) {
      RowList::unlink(rows_, row);
      (*rows_)[row].scheduled = 0;
    } else {
      base_->remove(row);
    }
  }

  void reschedule(RowHandle row, int64_t next_use) override {
    remove(row);
    insert(row, next_use);
  }

  RowHandle evict(int64_t* next_use) override {
    const RowHandle unused = base_->evict(next_use);
    if (unused != kNoRow) return unused;
    for (size_t i = buckets_.size(); i-- > 0;) {
      if (buckets_[i].empty()) continue;
      const RowHandle row = buckets_[i].front();
      remove(row);
      *next_use = first_plan_ + static_cast<int64_t>(i);
      return row;
    }
    return kNoRow;
  }

  void leave(RowHandle row) override { base_->leave(row); }

  void advance(int64_t plan) override {
    for (; first_plan_ <= plan; ++first_plan_) {
      if (buckets_.empty()) continue;
      spare_.push_back(buckets_.front());
      buckets_.pop_front();
    }
  }

  // The buckets keep their rows; their numbers move with the first one's.
  void postpone() override {
    ++first_plan_;
    base_->postpone();
  }

  size_t bytes() const override { return base_->bytes(); }

 private:
  // REQUIRES: plan >= first_plan_.
  RowList& bucket(int64_t plan) {
    TE_CHECK(plan >= first_plan_, "the use lies ahead");
    while (first_plan_ + static_cast<int64_t>(buckets_.size()) <= plan) {
      if (spare_.empty()) {
        buckets_.emplace_back(rows_);
      } else {
        buckets_.push_back(spare_.back());
        spare_.pop_back();
      }
    }
    return buckets_[static_cast<size_t>(plan - first_plan_)];
  }

  RowTable* rows_;
  std::unique_ptr<EvictionPolicy> base_;
  int64_t first_plan_ = 0;       // plan number of buckets_.front()
  std::deque<RowList> buckets_;  // by plan number
  std::vector<RowList> spare_;   // empty lists to use again
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lookahead(const PolicySpace& space,
                                               std::unique_ptr<EvictionPolicy> base) {
  return std::make_unique<Lookahead>(space.rows, std::move(base));
}

}  // namespace te
