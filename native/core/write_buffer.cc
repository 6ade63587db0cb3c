#include "core/write_buffer.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <unordered_set>
#include <utility>

namespace te {
namespace {

using Exclusive = std::lock_guard<std::shared_mutex>;
constexpr int64_t kNowhere = -1;  // no batch's number

using Shared = std::shared_lock<std::shared_mutex>;

}  // namespace

void WriteBuffer::add(const uint16_t* tables, const int64_t* rows, const uint8_t* records,
                      int64_t n) {
  const int64_t most = std::max<int64_t>(1, portion_bytes_ / record_bytes_);
  for (int64_t i = 0; i < n; i += most) {
    add_batch(tables + i, rows + i, records + i * record_bytes_,
              static_cast<size_t>(std::min(most, n - i)));
  }
}

void WriteBuffer::add_batch(const uint16_t* tables, const int64_t* rows, const uint8_t* records,
                            size_t n) {
  const size_t bytes = n * static_cast<size_t>(record_bytes_);
  auto added = std::make_shared<Batch>();
  added->records.assign(records, records + bytes);
  added->keys.reserve(n);
  for (size_t i = 0; i < n; ++i) added->keys.push_back({static_cast<uint64_t>(rows[i]), tables[i]});

  std::vector<Place> before(n, Place{kNowhere, 0});

  Exclusive lock(mutex_);
  const int64_t number = next_number_;
  batches_.push_back(added);
  size_t i = 0;
  try {
    for (; i < n; ++i) {
      const auto [it, is_new] = newest_.try_emplace(added->keys[i], Place{number, i});
      if (!is_new) before[i] = std::exchange(it->second, Place{number, i});
    }
  } catch (...) {
    // No memory for more: as if nothing had been added.
    while (i-- > 0) {
      const auto it = newest_.find(added->keys[i]);
      if (before[i].batch == kNowhere) {
        newest_.erase(it);
      } else {
        it->second = before[i];
      }
    }
    batches_.pop_back();
    throw;
  }
  ++next_number_;
  bytes_ += static_cast<int64_t>(bytes);
}

void WriteBuffer::read(const uint16_t* tables, const int64_t* rows, int64_t n, uint8_t* out,
                       bool* found) const {
  const auto size = static_cast<size_t>(record_bytes_);
  std::vector<std::pair<int64_t, const uint8_t*>> places;  // which of the rows, its record
  std::deque<std::shared_ptr<const Batch>> kept;           // where the records are
  {
    Shared lock(mutex_);
    if (newest_.empty()) return;
    for (int64_t i = 0; i < n; ++i) {
      const auto it = newest_.find({static_cast<uint64_t>(rows[i]), tables[i]});
      if (it == newest_.end()) continue;
      const Place place = it->second;
      const Batch& batch = *batches_[static_cast<size_t>(place.batch - first_number_)];
      places.emplace_back(i, batch.records.data() + place.index * size);
    }
    if (places.empty()) return;
    kept = batches_;
  }
  for (const auto& [i, record] : places) {
    std::memcpy(out + static_cast<size_t>(i) * size, record, size);
    found[i] = true;
  }
}

void WriteBuffer::hold() {
  Exclusive lock(mutex_);
  holds_.push_back(next_number_);
}

void WriteBuffer::resume() {
  Exclusive lock(mutex_);
  if (!holds_.empty()) holds_.pop_front();
}

bool WriteBuffer::take(BufferedRows* out) {
  const auto size = static_cast<size_t>(record_bytes_);
  std::vector<std::pair<const Batch*, size_t>> places;  // `arrived` alone removes batches
  {
    Shared lock(mutex_);
    const int64_t before = holds_.empty() ? next_number_ : holds_.front();
    int64_t end = first_number_;
    for (int64_t bytes = 0; end < before; ++end) {
      bytes +=
          static_cast<int64_t>(batches_[static_cast<size_t>(end - first_number_)]->records.size());
      if (bytes > portion_bytes_ && end > first_number_) break;
    }
    if (end == first_number_) return false;
    std::unordered_set<Key, Hash> seen;  // rows that batches from `before` on have, too
    for (int64_t number = end - 1; number >= first_number_; --number) {
      const Batch& batch = *batches_[static_cast<size_t>(number - first_number_)];
      for (size_t i = 0; i < batch.keys.size(); ++i) {
        const int64_t newest = newest_.at(batch.keys[i]).batch;
        // A record that is not the newest is needed below only if a hold keeps the newest.
        const bool goes = newest < before ? newest == number : seen.insert(batch.keys[i]).second;
        if (goes) places.emplace_back(&batch, i);
      }
    }
    taken_before_ = end;
  }
  out->tables.reserve(places.size());
  out->rows.reserve(places.size());
  out->records.resize(places.size() * size);
  uint8_t* record = out->records.data();
  for (const auto& [batch, i] : places) {
    out->tables.push_back(static_cast<uint16_t>(batch->keys[i].table));
    out->rows.push_back(static_cast<int64_t>(batch->keys[i].row));
    std::memcpy(record, batch->records.data() + i * size, size);
    record += size;
  }
  return true;
}

void WriteBuffer::arrived() {
  std::vector<std::shared_ptr<const Batch>> freed;  // without the lock
  freed.reserve(static_cast<size_t>(std::max(int64_t{0}, taken_before_ - first_number_)));
  Exclusive lock(mutex_);
  for (; first_number_ < taken_before_; ++first_number_) {
    const Batch& batch = *batches_.front();
    for (const Key& key : batch.keys) {
      const auto it = newest_.find(key);
      if (it != newest_.end() && it->second.batch == first_number_) newest_.erase(it);
    }
    bytes_ -= static_cast<int64_t>(batch.records.size());
    freed.push_back(std::move(batches_.front()));
    batches_.pop_front();
  }
}

int64_t WriteBuffer::bytes() const {
  Shared lock(mutex_);
  return bytes_;
}

}  // namespace te
