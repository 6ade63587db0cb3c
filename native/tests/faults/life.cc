#include <stdlib.h>

#include <cstdio>
#include <cstring>
#include <filesystem>

#include "store/sst_importer.h"
#include "tests/faults/torture.h"

namespace te::faults {
namespace {

constexpr int64_t kNumRows = 400;
constexpr size_t kRecordBytes = 512;
constexpr int64_t kMaxRowsPerWrite = 24;

StoreOptions options_of(OpenMode mode, rocksdb::Env* env) {
  StoreOptions options;
  options.record_bytes = kRecordBytes;
  options.mode = mode;
  options.num_read_threads = 0;
  options.write_buffer_bytes = 64 << 10;  // small, so that RocksDB flushes and compacts by itself
  options.block_cache_bytes = 1 << 20;
  options.env = env;
  return options;
}

void encode_key(int64_t row, uint8_t* key) {
  std::memcpy(key, "rows", 4);
  for (size_t i = 0; i < 8; ++i) key[4 + i] = static_cast<uint8_t>(row >> (56 - 8 * i));
}

int64_t row_of(const uint8_t* key) {
  int64_t row = 0;
  for (size_t i = 0; i < 8; ++i) row = (row << 8) | key[4 + i];
  return row;
}

void encode_record(int64_t row, uint64_t version, uint8_t* record) {
  for (size_t i = 0; i < kRecordBytes; i += 8) {
    const uint64_t word = (version << 24) + (i << 12) + static_cast<uint64_t>(row);
    std::memcpy(record + i, &word, 8);
  }
}

uint64_t version_of(int64_t row, const uint8_t* record) {
  uint64_t word;
  std::memcpy(&word, record, 8);
  uint8_t expected[kRecordBytes];
  encode_record(row, word >> 24, expected);
  if (std::memcmp(record, expected, kRecordBytes) != 0) {
    throw Broken("row " + std::to_string(row) + ": a torn or foreign record");
  }
  return word >> 24;
}

std::vector<uint8_t> keys_of(const std::vector<int64_t>& rows) {
  std::vector<uint8_t> keys(rows.size() * kKeyBytes);
  for (size_t i = 0; i < rows.size(); ++i) encode_key(rows[i], keys.data() + i * kKeyBytes);
  return keys;
}

std::vector<uint8_t> records_of(const std::vector<int64_t>& rows, uint64_t version) {
  std::vector<uint8_t> records(rows.size() * kRecordBytes);
  for (size_t i = 0; i < rows.size(); ++i) {
    encode_record(rows[i], version, records.data() + i * kRecordBytes);
  }
  return records;
}

std::vector<int64_t> some_rows(stress::Random* random) {
  std::vector<int64_t> rows(static_cast<size_t>(random->between(1, kMaxRowsPerWrite)));
  for (int64_t& row : rows) row = random->below(kNumRows);
  return rows;
}

Rows scan(RocksDbStore* store) {
  constexpr size_t kChunk = 256;
  std::vector<uint8_t> keys(kChunk * kKeyBytes);
  std::vector<uint8_t> records(kChunk * kRecordBytes);
  const auto scanner = store->scan(std::nullopt, std::nullopt);
  Rows rows;
  while (const size_t n = scanner->next(keys.data(), records.data(), kChunk)) {
    for (size_t i = 0; i < n; ++i) {
      const int64_t row = row_of(keys.data() + i * kKeyBytes);
      rows[row] = version_of(row, records.data() + i * kRecordBytes);
    }
  }
  return rows;
}

}  // namespace

Life::Life(std::string folder, rocksdb::Env* env, History* history, uint64_t* next_version)
    : folder_(std::move(folder)), env_(env), history_(history), next_version_(next_version) {}

void Life::open(bool create) {
  const OpenMode mode = create ? OpenMode::kCreate : OpenMode::kReadWrite;
  store_ = RocksDbStore::open(folder_ + "/db", options_of(mode, env_));
}

void Life::put(stress::Random* random) { put_rows(some_rows(random)); }

void Life::put_more(stress::Random* random) {
  std::vector<int64_t> rows(static_cast<size_t>(kMaxRowsPerWrite));
  for (int64_t& row : rows) row = random->below(kNumRows);
  put_rows(rows);
}

void Life::put_rows(const std::vector<int64_t>& rows) {
  const uint64_t version = (*next_version_)++;
  history_->add(rows, version);
  store_->put(keys_of(rows).data(), records_of(rows, version).data(), rows.size());
}

void Life::remove(stress::Random* random) {
  const std::vector<int64_t> rows = some_rows(random);
  history_->add(rows, 0);
  store_->remove(keys_of(rows).data(), rows.size());
}

void Life::read(stress::Random* random) {
  const std::vector<int64_t> rows = some_rows(random);
  std::vector<uint8_t> records(rows.size() * kRecordBytes);
  const auto found = std::make_unique<bool[]>(rows.size());
  store_->get(keys_of(rows).data(), rows.size(), records.data(), found.get());
  const Rows expected = history_->now();
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto at = expected.find(rows[i]);
    const uint64_t version = found[i] ? version_of(rows[i], records.data() + i * kRecordBytes) : 0;
    if (version != (at == expected.end() ? 0 : at->second)) {
      throw Broken("row " + std::to_string(rows[i]) + " was read as version " +
                   std::to_string(version));
    }
  }
}

void Life::flush() {
  store_->flush();
  history_->acknowledge();
}

void Life::checkpoint() {
  const std::string name = "checkpoint-" + std::to_string(num_checkpoints_++);
  store_->checkpoint(folder_ + "/" + name);
  checkpoints_[name] = history_->now();
  history_->acknowledge();
}

void Life::read_all() {
  store_->verify();
  if (scan(store_.get()) != history_->now()) throw Broken("a scan differs from what was put");
}

void Life::import() {
  const uint64_t version = (*next_version_)++;
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < kNumRows; row += 2) rows.push_back(row);
  SstImporter importer(store_, folder_ + "/import.tmp");
  importer.add(keys_of(rows).data(), records_of(rows, version).data(), rows.size());
  history_->add(rows, version);
  importer.finish();
  history_->acknowledge();
}

void Life::any(stress::Random* random) {
  const int64_t drawn = random->below(100);
  if (drawn < 62) {
    put(random);
  } else if (drawn < 70) {
    remove(random);
  } else if (drawn < 80) {
    read(random);
  } else if (drawn < 90) {
    flush();
  } else if (drawn < 93) {
    compact();
  } else if (drawn < 95) {
    read_all();
  } else {
    checkpoint();
  }
}

bool Life::close(bool refused) {
  if (store_ == nullptr) return true;
  bool closed = true;
  try {
    store_->close();
    if (!refused) history_->acknowledge();
  } catch (const StoreException&) {
    closed = false;
  }
  store_.reset();
  return closed;
}

Rows rows_in(const std::string& path, rocksdb::Env* env) {
  const auto store = RocksDbStore::open(path, options_of(OpenMode::kReadWrite, env));
  const uint64_t count = store->verify();
  Rows rows = scan(store.get());
  if (rows.size() != count) {
    throw Broken("verify counts " + std::to_string(count) + " records, a scan " +
                 std::to_string(rows.size()));
  }
  store->close();
  return rows;
}

void judge_checkpoints(const std::string& folder, const std::map<std::string, Rows>& checkpoints) {
  for (const auto& [name, rows] : checkpoints) {
    if (rows_in(folder + "/" + name) != rows) {
      throw Broken("acknowledged " + name + " does not hold the rows of its moment");
    }
  }
}

void create_folder(const std::string& folder, FaultFileSystem* faults) {
  std::unique_ptr<rocksdb::FSDirectory> directory;
  rocksdb::IOStatus status = faults->CreateDir(folder + "/db", {}, nullptr);
  if (status.ok()) status = faults->NewDirectory(folder, {}, &directory, nullptr);
  if (status.ok()) status = directory->Fsync({}, nullptr);
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

Scratch::Scratch() {
  // Memory where there is some: a test counts fsyncs, and has no use for their time.
  const std::filesystem::path base = std::filesystem::is_directory("/dev/shm")
                                         ? std::filesystem::path("/dev/shm")
                                         : std::filesystem::temp_directory_path();
  path_ = (base / "te_torture_XXXXXX").string();
  if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot create " + path_);
}

Scratch::~Scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace te::faults
