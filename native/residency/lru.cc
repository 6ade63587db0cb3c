// Least recently used, by the batch that last pinned the row.
#include "residency/policy.h"

namespace te {
namespace {

class Lru final : public EvictionPolicy {
 public:
  explicit Lru(RowTable* rows) : rows_(rows), list_(rows) {}

  void use(RowHandle) override {}
  void insert(RowHandle row, int64_t) override { list_.push_back(row); }
  void remove(RowHandle row) override { RowList::unlink(rows_, row); }
  void reschedule(RowHandle, int64_t) override {}
  RowHandle evict(int64_t* next_use) override {
    *next_use = kNever;
    if (list_.empty()) return kNoRow;
    const RowHandle row = list_.front();
    RowList::unlink(rows_, row);
    return row;
  }
  void leave(RowHandle) override {}
  void advance(int64_t) override {}
  size_t bytes() const override { return 0; }

 private:
  RowTable* rows_;
  RowList list_;  // least recently used first
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru(const PolicySpace& space) {
  return std::make_unique<Lru>(space.rows);
}

}  // namespace te
