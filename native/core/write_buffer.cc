#include "core/write_buffer.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "core/check.h"

namespace te {

void WriteBuffer::add(const uint16_t* tables, const int64_t* rows, const uint8_t* records,
                      int64_t n) {
  if (n == 0) return;
  const size_t bytes = static_cast<size_t>(n * record_bytes_);
  Batch added{0, {}, std::vector<uint8_t>(records, records + bytes)};
  added.keys.reserve(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) added.keys.push_back({static_cast<uint64_t>(rows[i]), tables[i]});

  std::lock_guard<std::mutex> lock(mutex_);
  added.number = next_number_++;
  for (size_t i = 0; i < added.keys.size(); ++i) {
    newest_.insert_or_assign(added.keys[i], Place{added.number, i});
  }
  bytes_ += static_cast<int64_t>(bytes);
  batches_.push_back(std::move(added));
}

void WriteBuffer::read(const uint16_t* tables, const int64_t* rows, int64_t n, uint8_t* out,
                       bool* found) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (newest_.empty()) return;
  const size_t size = static_cast<size_t>(record_bytes_);
  for (int64_t i = 0; i < n; ++i) {
    const auto it = newest_.find({static_cast<uint64_t>(rows[i]), tables[i]});
    if (it == newest_.end()) continue;
    const Place place = it->second;
    std::memcpy(out + static_cast<size_t>(i) * size,
                batch(place.batch).records.data() + place.index * size, size);
    found[i] = true;
  }
}

void WriteBuffer::hold() {
  std::lock_guard<std::mutex> lock(mutex_);
  holds_.push_back(next_number_);
}

void WriteBuffer::resume() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!holds_.empty()) holds_.pop_front();
}

BufferedRows WriteBuffer::take() {
  std::lock_guard<std::mutex> lock(mutex_);
  TE_CHECK(batches_.empty() || batches_.front().number >= taken_before_,
           "what was taken last has arrived");
  const int64_t before = holds_.empty() ? next_number_ : holds_.front();
  BufferedRows out;
  const size_t size = static_cast<size_t>(record_bytes_);
  size_t most = 0;
  for (const Batch& b : batches_) {
    if (b.number < before) most += b.keys.size();
  }
  out.tables.reserve(most);
  out.rows.reserve(most);
  out.records.reserve(most * size);
  std::unordered_set<Key, Hash> seen;  // rows that batches from `before` on have, too
  for (auto b = batches_.rbegin(); b != batches_.rend(); ++b) {
    if (b->number >= before) continue;
    for (size_t i = 0; i < b->keys.size(); ++i) {
      const Key& key = b->keys[i];
      const int64_t newest = newest_.at(key).batch;
      const bool goes = newest < before ? newest == b->number : seen.insert(key).second;
      if (!goes) continue;
      out.tables.push_back(static_cast<uint16_t>(key.table));
      out.rows.push_back(static_cast<int64_t>(key.row));
      const uint8_t* record = b->records.data() + i * size;
      out.records.insert(out.records.end(), record, record + size);
    }
  }
  taken_before_ = std::max(taken_before_, before);
  return out;
}

void WriteBuffer::arrived() {
  std::lock_guard<std::mutex> lock(mutex_);
  while (!batches_.empty() && batches_.front().number < taken_before_) {
    const Batch& b = batches_.front();
    for (const Key& key : b.keys) {
      const auto it = newest_.find(key);
      if (it != newest_.end() && it->second.batch == b.number) newest_.erase(it);
    }
    bytes_ -= static_cast<int64_t>(b.records.size());
    batches_.pop_front();
  }
}

int64_t WriteBuffer::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

}  // namespace te
