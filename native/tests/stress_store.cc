// RocksDbStore from several threads: puts, gets, flushes and statistics, then a close under way.
#include <stdlib.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "store/rocksdb_store.h"
#include "store/row_file_system.h"
#include "tests/stress.h"

namespace te::stress {
namespace {

constexpr int64_t kNumRows = 2000;
constexpr int64_t kRecordBytes = 48;
constexpr int kNumWriters = 2;
constexpr int kNumReaders = 2;
constexpr int64_t kPutsPerWriter = 25;
constexpr int64_t kGetsPerReader = 100;  // while others write
constexpr int64_t kRowsPerCall = 40;

struct Directory {
  std::string path;
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "te_stress_XXXXXX").string();
    TE_EXPECT(mkdtemp(name.data()) != nullptr, "cannot make the directory %s", name.c_str());
    path = name;
  }
  ~Directory() { std::filesystem::remove_all(path); }
};

void encode_key(int64_t row, uint8_t* key) {
  std::memcpy(key, row % 2 == 0 ? "even" : "odd_", 4);
  for (size_t i = 0; i < 8; ++i) key[4 + i] = static_cast<uint8_t>(row >> (56 - 8 * i));
}

void encode_record(int64_t row, uint64_t version, uint8_t* record) {
  for (size_t i = 0; i < kRecordBytes; i += 8) {
    const uint64_t word = (version << 24) + (i << 16) + static_cast<uint64_t>(row);
    std::memcpy(record + i, &word, 8);
  }
}

uint64_t version_of(int64_t row, const uint8_t* record) {
  uint64_t word;
  std::memcpy(&word, record, 8);
  uint8_t expected[kRecordBytes];
  encode_record(row, word >> 24, expected);
  TE_EXPECT(std::memcmp(record, expected, kRecordBytes) == 0, "row %lld: a torn or foreign record",
            static_cast<long long>(row));
  return word >> 24;
}

struct Round {
  std::shared_ptr<RocksDbStore> store;
  std::atomic<uint64_t> begun[kNumRows] = {};  // newest version whose `Put` has begun
  std::atomic<uint64_t> put[kNumRows] = {};    // newest version whose `Put` has returned
  Event written;
};

// Versions of `rows` as stored, 0 where the store has none.
std::vector<uint64_t> get(RocksDbStore* store, const std::vector<int64_t>& rows) {
  std::vector<uint8_t> keys(rows.size() * kKeyBytes);
  std::vector<uint8_t> records(rows.size() * kRecordBytes);
  const auto found = std::make_unique<bool[]>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) encode_key(rows[i], keys.data() + i * kKeyBytes);
  store->get(keys.data(), rows.size(), records.data(), found.get());
  std::vector<uint64_t> versions;
  for (size_t i = 0; i < rows.size(); ++i) {
    versions.push_back(found[i] ? version_of(rows[i], records.data() + i * kRecordBytes) : 0);
  }
  return versions;
}

void put_rows(Round* round, int writer, uint64_t seed) {
  Random random(seed);
  for (int64_t b = 0; b < kPutsPerWriter; ++b) {
    std::vector<int64_t> rows;
    std::vector<uint8_t> keys(kRowsPerCall * kKeyBytes);
    std::vector<uint8_t> records(kRowsPerCall * kRecordBytes);
    for (int64_t i = 0; i < kRowsPerCall; ++i) {
      // A repeated row is legal; its last record wins.
      const int64_t row = random.below(kNumRows / kNumWriters) * kNumWriters + writer;
      rows.push_back(row);
      encode_key(row, keys.data() + i * static_cast<int64_t>(kKeyBytes));
      encode_record(row, ++round->begun[row], records.data() + i * kRecordBytes);
    }
    round->store->put(keys.data(), records.data(), rows.size());
    for (int64_t row : rows) round->put[row] = round->begun[row].load();
    if (random.one_in(10)) round->store->flush();
  }
}

// Until the store is closed.
void get_rows(Round* round, uint64_t seed) {
  Random random(seed);
  try {
    for (int64_t call = 0;; ++call) {
      if (call == kGetsPerReader) round->written.wait();
      std::vector<int64_t> rows;
      std::vector<uint64_t> known;
      for (int64_t i = random.below(kRowsPerCall); i >= 0; --i) {
        rows.push_back(random.below(kNumRows));
        known.push_back(round->put[rows.back()]);
      }
      const std::vector<uint64_t> versions = get(round->store.get(), rows);
      for (size_t i = 0; i < rows.size(); ++i) {
        const uint64_t begun = round->begun[rows[i]];
        TE_EXPECT(versions[i] >= known[i] && versions[i] <= begun,
                  "row %lld: version %llu, known %llu, newest %llu",
                  static_cast<long long>(rows[i]), static_cast<unsigned long long>(versions[i]),
                  static_cast<unsigned long long>(known[i]),
                  static_cast<unsigned long long>(begun));
      }
      if (random.one_in(8)) {
        TE_EXPECT(round->store->stats().at("background_errors") == 0, "background errors");
      }
    }
  } catch (const StoreException& error) {
    TE_EXPECT(error.kind() == ErrorKind::kClosed, "%s", error.what());
  }
}

// RocksDB writes to its log in no other test: our stores have it off. It must be able to.
void check_log(const std::string& path) {
  rocksdb::Env* const env = row_env();
  std::unique_ptr<rocksdb::WritableFile> log;
  TE_EXPECT(env->NewWritableFile(path, &log, rocksdb::EnvOptions()).ok(), "cannot create a log");
  TE_EXPECT(log->Sync().ok() && log->Flush().ok() && log->GetFileSize() == 0, "an empty log");
  for (const char* part : {"one", "two"}) {
    TE_EXPECT(log->Append(part).ok() && log->Sync().ok(), "cannot write to a log");
  }
  TE_EXPECT(log->GetFileSize() == 6 && log->Close().ok(), "cannot close a log");
  std::string content;
  TE_EXPECT(rocksdb::ReadFileToString(env, path, &content).ok() && content == "onetwo",
            "the log holds '%s'", content.c_str());
}

void stress_round(uint64_t seed) {
  const Directory directory;
  check_log(directory.path + "/000001.log");
  StoreOptions options;
  options.record_bytes = kRecordBytes;
  options.mode = OpenMode::kCreate;
  options.num_read_threads = 3;
  options.write_buffer_bytes = 64 << 10;  // small, so that RocksDB flushes and compacts meanwhile
  options.block_cache_bytes = 1 << 20;
  const auto round = std::make_unique<Round>();
  round->store = RocksDbStore::open(directory.path + "/db", options);
  Threads readers;
  for (int r = 0; r < kNumReaders; ++r) {
    readers.start([&round, r, seed] { get_rows(round.get(), seed * 16 + r); });
  }
  {
    Threads writers;
    for (int w = 0; w < kNumWriters; ++w) {
      writers.start([&round, w, seed] { put_rows(round.get(), w, seed * 16 + kNumReaders + w); });
    }
  }
  round->written.set();
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < kNumRows; ++row) rows.push_back(row);
  const std::vector<uint64_t> versions = get(round->store.get(), rows);
  for (int64_t row = 0; row < kNumRows; ++row) {
    TE_EXPECT(versions[static_cast<size_t>(row)] == round->put[row], "row %lld is not the last put",
              static_cast<long long>(row));
  }
  round->store->close();  // under the readers' hands
  readers.join();
}

}  // namespace

void stress_store(const Run& run) {
  for (Rounds rounds(run); rounds.next();) stress_round(rounds.seed());
}

}  // namespace te::stress
