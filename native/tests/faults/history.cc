#include <algorithm>

#include "tests/faults/torture.h"

namespace te::faults {

void History::add(const std::vector<int64_t>& rows, uint64_t version) {
  writes_.push_back({rows, version});
}

void History::apply(const Write& write, Rows* rows) {
  for (const int64_t row : write.rows) {
    if (write.version == 0) {
      rows->erase(row);
    } else {
      (*rows)[row] = write.version;
    }
  }
}

Rows History::after(size_t num_writes) const {
  Rows rows = start_;
  for (size_t i = 0; i < num_writes; ++i) apply(writes_[i], &rows);
  return rows;
}

void History::judge(const Rows& found) const {
  Rows rows = after(num_durable_);
  if (rows == found) return;
  for (size_t i = num_durable_; i < writes_.size(); ++i) {
    apply(writes_[i], &rows);
    if (rows == found) return;
  }
  const Rows durable = after(num_durable_);
  size_t missing = 0;
  for (const auto& [row, version] : durable) {
    const auto at = found.find(row);
    if (at == found.end() || at->second < version) ++missing;
  }
  throw Broken("the store holds " + std::to_string(found.size()) + " rows, which is no prefix of " +
               std::to_string(writes_.size()) + " writes; of " + std::to_string(num_durable_) +
               " durable writes' rows " + std::to_string(missing) + " are missing or older");
}

}  // namespace te::faults
