// Records on their way to the tier below: added in batches, readable until they have arrived.
//
// Of a row that is added again before its record was taken only the newest record goes down. Taken
// records stay readable until `arrived`, so that a row is always found here or below. After
// `hold`, what is added goes down only when that hold has ended by `resume`.
//
// A call that throws has changed nothing, except that `add` may have added the first of the
// records.
//
// Threads: every method locks; records are copied without the lock. One thread takes and reports
// arrivals; any may add and read.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "core/row_hash.h"

namespace te {

struct BufferedRows {
  std::vector<uint16_t> tables;  // (n)
  std::vector<int64_t> rows;     // (n)
  std::vector<uint8_t> records;  // (n, record_bytes)
};

class WriteBuffer {
 public:
  // `portion_bytes`: what one `take` gives at most, or one record. Room comes back in such steps.
  WriteBuffer(int64_t record_bytes, int64_t portion_bytes)
      : record_bytes_(record_bytes), portion_bytes_(portion_bytes) {}

  // Copies `records` (n, record_bytes) of the rows (tables[i], rows[i]), which differ.
  void add(const uint16_t* tables, const int64_t* rows, const uint8_t* records, int64_t n);

  // Copies the newest record of each row that is here to out[i] and sets found[i]; leaves the
  // others alone.
  void read(const uint16_t* tables, const int64_t* rows, int64_t n, uint8_t* out,
            bool* found) const;

  // Nothing that is added from now on is taken until a `resume` ends this hold. The oldest hold
  // ends first.
  void hold();
  void resume();

  // The oldest records that were added before the oldest hold, if there is one, for the tier below.
  // Returns whether there were any; where later ones replace all of them, `out` is empty. What was
  // taken and has not arrived is taken again.
  bool take(BufferedRows* out);

  // What was taken last is below now.
  void arrived();

  int64_t bytes() const;

 private:
  struct Key {
    uint64_t row;
    uint32_t table;
    bool operator==(const Key& o) const { return row == o.row && table == o.table; }
  };
  struct Hash {
    size_t operator()(const Key& k) const {
      return static_cast<size_t>(secret_hash(k.table, k.row));
    }
  };
  // At most one portion; never changes.
  struct Batch {
    std::vector<Key> keys;
    std::vector<uint8_t> records;
  };
  struct Place {
    int64_t batch;  // its number
    size_t index;
  };

  void add_batch(const uint16_t* tables, const int64_t* rows, const uint8_t* records, size_t n);

  const int64_t record_bytes_;
  const int64_t portion_bytes_;
  mutable std::shared_mutex mutex_;  // guards all below
  std::deque<std::shared_ptr<const Batch>> batches_;
  std::unordered_map<Key, Place, Hash> newest_;
  int64_t first_number_ = 0;   // of batches_; the others follow
  int64_t next_number_ = 0;    // of the next batch
  std::deque<int64_t> holds_;  // numbers of the first batches after them
  int64_t bytes_ = 0;

  int64_t taken_before_ = 0;  // batches below this number were taken; for the thread that takes
};

}  // namespace te
