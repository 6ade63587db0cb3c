#include "core/write_buffer.h"

#include <cstring>
#include <utility>

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

BufferedRows WriteBuffer::take() {
  std::lock_guard<std::mutex> lock(mutex_);
  BufferedRows out;
  out.tables.reserve(newest_.size());
  out.rows.reserve(newest_.size());
  out.records.reserve(newest_.size() * static_cast<size_t>(record_bytes_));
  const size_t size = static_cast<size_t>(record_bytes_);
  for (const Batch& b : batches_) {
    for (size_t i = 0; i < b.keys.size(); ++i) {
      const Place newest = newest_.at(b.keys[i]);
      if (newest.batch != b.number) continue;  // a later one goes instead
      out.tables.push_back(static_cast<uint16_t>(b.keys[i].table));
      out.rows.push_back(static_cast<int64_t>(b.keys[i].row));
      const uint8_t* record = b.records.data() + i * size;
      out.records.insert(out.records.end(), record, record + size);
    }
  }
  taken_before_ = next_number_;
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
