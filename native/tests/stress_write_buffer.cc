// WriteBuffer before a store: a row is always found in one of them, and never older than what its
// reader knew to be added.
#include <atomic>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "core/write_buffer.h"
#include "tests/stress.h"

namespace te::stress {
namespace {

constexpr uint16_t kNumTables = 2;
constexpr int64_t kRowsPerTable = 48;  // few, so that rows are added again before they are taken
constexpr int64_t kNumRows = kNumTables * kRowsPerTable;
constexpr int64_t kWords = 8;
constexpr int64_t kRecordBytes = kWords * 8;
constexpr int64_t kBufferBytes = 64 * kRecordBytes;
constexpr int kNumAdders = 2;
constexpr int kNumReaders = 2;
constexpr int64_t kBatchesPerAdder = 100;

// Row `r` of a round, 0 to kNumRows.
uint16_t table_of(int64_t r) { return static_cast<uint16_t>(r % kNumTables); }
int64_t id_of(int64_t r) { return (r / kNumTables) * 0x100000001 - 7; }  // beyond 32 bits, negative

struct Record {
  uint64_t words[kWords];
};

Record record_of(int64_t r, uint64_t version) {
  Record record;
  for (uint64_t w = 0; w < kWords; ++w) record.words[w] = (version << 20) + (w << 16) + r;
  return record;
}

// The version in `bytes`, all of which must belong to it.
uint64_t version_of(int64_t r, const uint8_t* bytes) {
  Record record;
  std::memcpy(&record, bytes, sizeof(record));
  const uint64_t version = record.words[0] >> 20;
  const Record expected = record_of(r, version);
  TE_EXPECT(std::memcmp(&record, &expected, sizeof(record)) == 0,
            "row %lld: a torn or foreign record", static_cast<long long>(r));
  return version;
}

struct Round {
  WriteBuffer buffer{kRecordBytes, 7 * kRecordBytes};

  std::mutex store_mutex;
  std::map<std::pair<uint16_t, int64_t>, Record> store;  // guarded by store_mutex

  // Relaxed throughout: the buffer alone must order the threads.
  std::atomic<uint64_t> begun[kNumRows] = {};  // newest version whose `add` has begun
  std::atomic<uint64_t> added[kNumRows] = {};  // newest version whose `add` has returned
  std::atomic<int> adders_left{kNumAdders};
};

struct Snapshot {
  std::vector<uint64_t> added;  // by row, when it was made
};

void add_batches(Round* round, int adder, uint64_t seed) {
  Random random(seed);
  for (int64_t b = 0; b < kBatchesPerAdder; ++b) {
    // As the pipeline's back-pressure; and the taker is given work in small portions.
    while (round->buffer.bytes() > kBufferBytes) std::this_thread::yield();
    std::vector<int64_t> chosen;
    std::vector<uint16_t> tables;
    std::vector<int64_t> ids;
    std::vector<Record> records;
    const int64_t stride = random.between(1, 9);
    for (int64_t r = random.below(4) * kNumAdders + adder; r < kNumRows; r += stride * kNumAdders) {
      const uint64_t version = round->begun[r].load(std::memory_order_relaxed) + 1;
      round->begun[r].store(version, std::memory_order_relaxed);
      chosen.push_back(r);
      tables.push_back(table_of(r));
      ids.push_back(id_of(r));
      records.push_back(record_of(r, version));
    }
    round->buffer.add(tables.data(), ids.data(), reinterpret_cast<const uint8_t*>(records.data()),
                      static_cast<int64_t>(ids.size()));
    for (int64_t r : chosen) {
      round->added[r].store(round->begun[r].load(std::memory_order_relaxed),
                            std::memory_order_relaxed);
    }
  }
  --round->adders_left;
}

// Whether there was anything to take.
bool write_some(Round* round) {
  BufferedRows taken;
  if (!round->buffer.take(&taken)) return false;
  std::set<std::pair<uint16_t, int64_t>> seen;
  for (size_t i = 0; i < taken.rows.size(); ++i) {
    const std::pair<uint16_t, int64_t> key{taken.tables[i], taken.rows[i]};
    TE_EXPECT(seen.insert(key).second, "one row was taken twice");
    Record record;
    std::memcpy(&record, taken.records.data() + i * kRecordBytes, sizeof(record));
    std::lock_guard<std::mutex> lock(round->store_mutex);
    Record& stored = round->store[key];
    TE_EXPECT(record.words[0] > stored.words[0], "the store got an older record");
    stored = record;
  }
  round->buffer.arrived();
  return true;
}

// Takes everything, or what was added before `snapshot`, whose hold it ends: the store has every
// row as of then, whatever was added since.
void write_back(Round* round, const Snapshot* snapshot = nullptr) {
  while (write_some(round)) continue;
  if (snapshot == nullptr) return;
  round->buffer.resume();
  std::lock_guard<std::mutex> lock(round->store_mutex);
  for (int64_t r = 0; r < kNumRows; ++r) {
    const auto it = round->store.find({table_of(r), id_of(r)});
    const uint64_t stored = it == round->store.end()
                                ? 0
                                : version_of(r, reinterpret_cast<const uint8_t*>(it->second.words));
    TE_EXPECT(stored >= snapshot->added[static_cast<size_t>(r)],
              "row %lld: the snapshot has version %llu", static_cast<long long>(r),
              static_cast<unsigned long long>(stored));
  }
}

Snapshot take_snapshot(Round* round) {
  Snapshot snapshot;
  for (const auto& version : round->added) {
    snapshot.added.push_back(version.load(std::memory_order_relaxed));
  }
  round->buffer.hold();
  return snapshot;
}

void read_rows(Round* round, uint64_t seed) {
  Random random(seed);
  while (round->adders_left.load() > 0) {
    std::vector<int64_t> chosen;
    std::vector<uint16_t> tables;
    std::vector<int64_t> ids;
    std::vector<uint64_t> known;
    const int64_t n = random.between(1, 24);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t r = random.below(kNumRows);
      chosen.push_back(r);
      tables.push_back(table_of(r));
      ids.push_back(id_of(r));
      known.push_back(round->added[r].load(std::memory_order_relaxed));
    }
    std::vector<uint8_t> records(static_cast<size_t>(n * kRecordBytes));
    const auto found = std::make_unique<bool[]>(static_cast<size_t>(n));
    round->buffer.read(tables.data(), ids.data(), n, records.data(), found.get());
    for (int64_t i = 0; i < n; ++i) {
      uint8_t* record = records.data() + i * kRecordBytes;
      if (!found[static_cast<size_t>(i)]) {
        std::lock_guard<std::mutex> lock(round->store_mutex);
        const auto it = round->store.find({tables[i], ids[i]});
        TE_EXPECT(it != round->store.end() || known[i] == 0, "row %lld is nowhere",
                  static_cast<long long>(chosen[i]));
        if (it == round->store.end()) continue;
        std::memcpy(record, &it->second, sizeof(Record));
      }
      const uint64_t version = version_of(chosen[i], record);
      const uint64_t begun = round->begun[chosen[i]].load(std::memory_order_relaxed);
      TE_EXPECT(version >= known[i] && version <= begun,
                "row %lld: version %llu, known %llu, newest %llu",
                static_cast<long long>(chosen[i]), static_cast<unsigned long long>(version),
                static_cast<unsigned long long>(known[i]), static_cast<unsigned long long>(begun));
    }
  }
}

void stress_round(uint64_t seed) {
  Round round;
  {
    Threads threads;
    for (int a = 0; a < kNumAdders; ++a) {
      threads.start([&round, a, seed] { add_batches(&round, a, seed * 16 + a); });
    }
    for (int r = 0; r < kNumReaders; ++r) {
      threads.start([&round, r, seed] { read_rows(&round, seed * 16 + kNumAdders + r); });
    }
    threads.start([&round] {
      while (round.adders_left.load() > 0) {
        const Snapshot snapshot = take_snapshot(&round);
        write_back(&round, &snapshot);
        write_back(&round);
      }
    });
  }
  write_back(&round);
  TE_EXPECT(round.buffer.bytes() == 0, "%lld bytes are left",
            static_cast<long long>(round.buffer.bytes()));
  for (int64_t r = 0; r < kNumRows; ++r) {
    const auto it = round.store.find({table_of(r), id_of(r)});
    const uint64_t stored = it == round.store.end()
                                ? 0
                                : version_of(r, reinterpret_cast<const uint8_t*>(it->second.words));
    TE_EXPECT(stored == round.added[r].load(), "row %lld: the store has version %llu of %llu",
              static_cast<long long>(r), static_cast<unsigned long long>(stored),
              static_cast<unsigned long long>(round.added[r].load()));
  }
}

}  // namespace

void stress_write_buffer(const Run& run) {
  for (Rounds rounds(run); rounds.next();) stress_round(rounds.seed());
}

}  // namespace te::stress
