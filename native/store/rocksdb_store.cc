#include "store/rocksdb_store.h"

#include <rocksdb/convenience.h>
#include <rocksdb/statistics.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <filesystem>
#include <system_error>

#include "core/available_threads.h"
#include "store/failure_state.h"
#include "store/live_files.h"
#include "store/reader_pool.h"
#include "store/row_file_system.h"
#include "store/written_files.h"

namespace te {
namespace {

// Rows per task of a get(). At most 64, where RocksDB's own batching (32) stops paying; at least 8,
// so that a small batch still spreads its disk reads over several threads.
constexpr size_t kMinTaskRows = 8;
constexpr size_t kMaxTaskRows = 64;

constexpr size_t kWriteBatchBytes = size_t{1} << 20;
constexpr size_t kProtectionBytesPerKey = 8;
constexpr size_t kScanReadaheadBytes = size_t{2} << 20;
constexpr size_t kFilesPerOpener = 8;
constexpr size_t kMaxOpeners = 16;

rocksdb::WriteOptions unlogged_write() {
  rocksdb::WriteOptions options;
  options.disableWAL = true;  // durability is the checkpoint
  return options;
}

rocksdb::ReadOptions whole_store_read() {
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.fill_cache = false;
  options.readahead_size = kScanReadaheadBytes;
  return options;
}

// Files with rows; 0 where there is no directory.
size_t num_files(const std::string& dir) {
  std::error_code none;
  size_t n = 0;
  for (std::filesystem::directory_iterator file(dir, none), end; !none && file != end;
       file.increment(none)) {
    if (file->path().extension() == ".sst") ++n;
  }
  return n;
}

rocksdb::Status open_database(const StoreOptions& options, const rocksdb::Options& rocks,
                              const std::string& path, rocksdb::DB** db) {
  if (options.mode == OpenMode::kReadOnly) return rocksdb::DB::OpenForReadOnly(rocks, path, db);
  if (options.mode != OpenMode::kCreate || rocks.env != row_env()) {
    return rocksdb::DB::Open(rocks, path, db);
  }
  {
    const DeferredSyncs deferred;
    const rocksdb::Status status = rocksdb::DB::Open(rocks, path, db);
    if (!status.ok()) return status;
  }
  return sync_store(path);
}

void fsync_directory(rocksdb::Env* env, const std::string& dir) {
  std::unique_ptr<rocksdb::Directory> directory;
  throw_if_error(env->NewDirectory(dir, &directory), "cannot open '" + dir + "'");
  throw_if_error(directory->Fsync(), "cannot fsync '" + dir + "'");
}

}  // namespace

RocksDbStore::RocksDbStore(const std::string& path, const StoreOptions& options)
    : path_(path),
      options_(options),
      rocks_options_(rocks_options_of(options)),
      owner_pid_(::getpid()),
      failure_(std::make_shared<FailureState>()) {}

std::shared_ptr<RocksDbStore> RocksDbStore::open(const std::string& path,
                                                 const StoreOptions& options) {
  if (options.record_bytes == 0) {
    throw StoreException(ErrorKind::kConfig, "record_bytes must be positive, not 0");
  }
  std::shared_ptr<RocksDbStore> store(new RocksDbStore(path, options));
  rocksdb::Options rocks = with_listener(store->rocks_options_, store->failure_);
  // An opening reads the index of every file, on threads that it starts whether it has files or
  // not.
  const size_t openers = std::clamp<size_t>(num_files(path) / kFilesPerOpener, 1, kMaxOpeners);
  const bool enough = openers == 1 || available_threads(openers) == openers;
  rocks.max_file_opening_threads = enough ? static_cast<int>(openers) : 1;
  rocksdb::DB* db = nullptr;
  rocksdb::Status status;
  try {
    if (options.mode != OpenMode::kReadOnly) start_background_threads(rocks.env);
    status = open_database(options, rocks, path, &db);
  } catch (const std::system_error& error) {
    throw StoreException(ErrorKind::kStore, "cannot open the RocksDB in '" + path +
                                                "': the process can start no further thread (" +
                                                error.what() + ")");
  }
  std::unique_ptr<rocksdb::DB> opened(db);
  throw_if_error(status, "cannot open the RocksDB in '" + path + "'");
  store->db_ = std::move(opened);
  return store;
}

RocksDbStore::~RocksDbStore() {
  if (!is_own_process()) {
    // After a fork RocksDB's threads do not exist here, and waiting for them would hang.
    (void)db_.release();
    return;
  }
  try {
    close();
  } catch (const StoreException&) {
    // A caller that wants to know calls close().
  }
}

bool RocksDbStore::is_own_process() const { return ::getpid() == owner_pid_; }

RocksDbStore::SharedLock RocksDbStore::enter() {
  if (!is_own_process()) {
    throw StoreException(ErrorKind::kClosed, "store '" + path_ + "' was opened by process " +
                                                 std::to_string(owner_pid_) +
                                                 " and cannot be used after a fork");
  }
  SharedLock lock(open_mutex_);
  if (db_ == nullptr) throw StoreException(ErrorKind::kClosed, "store '" + path_ + "' is closed");
  failure_->throw_if_set(path_);
  return lock;
}

void RocksDbStore::require_writable() const {
  if (options_.mode == OpenMode::kReadOnly) {
    throw StoreException(ErrorKind::kStore, "store '" + path_ + "' was opened read_only");
  }
}

void RocksDbStore::check_write(const rocksdb::Status& status, const char* what) {
  if (status.ok()) return;
  failure_->set(status, what);
  failure_->set_reported();
  throw_if_error(status, std::string(what) + " on store '" + path_ + "'");
}

void RocksDbStore::check_record_size(size_t size, const uint8_t* key) const {
  if (size == options_.record_bytes) return;
  throw StoreException(ErrorKind::kCorruption, "store '" + path_ + "': key " + hex(key) + " has " +
                                                   std::to_string(size) + " bytes, not " +
                                                   std::to_string(options_.record_bytes));
}

void RocksDbStore::get(const uint8_t* keys, size_t n, uint8_t* out, bool* found) {
  SharedLock lock = enter();
  if (n == 0) return;
  const std::vector<SortedKey> sorted = sorted_keys(keys, n);
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  read.fill_cache = options_.fill_cache;
  rocksdb::ColumnFamilyHandle* const column = db_->DefaultColumnFamily();

  ReaderPool& readers = ReaderPool::of_process();
  const size_t helpers =
      std::min(readers.max_threads(), options_.num_read_threads.value_or(readers.max_threads()));
  const size_t threads = helpers + 1;
  const size_t task_rows = std::clamp(n / (4 * threads), kMinTaskRows, kMaxTaskRows);
  const size_t num_tasks = (n + task_rows - 1) / task_rows;

  std::mutex error_mutex;
  size_t error_task = num_tasks;
  std::exception_ptr error;

  const auto read_task = [&](size_t task) {
    const size_t begin = task * task_rows;
    const size_t count = std::min(task_rows, n - begin);
    std::array<rocksdb::Slice, kMaxTaskRows> slices;
    std::array<rocksdb::PinnableSlice, kMaxTaskRows> values;
    std::array<rocksdb::Status, kMaxTaskRows> statuses;
    for (size_t i = 0; i < count; ++i) slices[i] = slice_of(keys, sorted[begin + i].index);
    try {
      db_->MultiGet(read, column, count, slices.data(), values.data(), statuses.data(),
                    /*sorted_input=*/true);
      for (size_t i = 0; i < count; ++i) {
        const size_t index = sorted[begin + i].index;
        found[index] = statuses[i].ok();
        if (statuses[i].IsNotFound()) continue;
        throw_if_error(statuses[i], "get from store '" + path_ + "'");
        check_record_size(values[i].size(), keys + index * kKeyBytes);
        std::memcpy(out + index * options_.record_bytes, values[i].data(), values[i].size());
      }
    } catch (...) {
      // Every task runs, and the first in key order is reported: the same error on every run.
      std::lock_guard<std::mutex> error_lock(error_mutex);
      if (task < error_task) {
        error_task = task;
        error = std::current_exception();
      }
    }
  };
  readers.parallel_for(num_tasks, helpers, read_task);
  if (error) std::rethrow_exception(std::move(error));
}

void RocksDbStore::put(const uint8_t* keys, const uint8_t* records, size_t n) {
  SharedLock lock = enter();
  require_writable();
  // Key order makes neighbours in the memtable's skip list; equal keys keep theirs: last wins.
  const std::vector<SortedKey> sorted = sorted_keys(keys, n);
  const size_t batch_rows = std::max<size_t>(1, kWriteBatchBytes / options_.record_bytes);
  const rocksdb::WriteOptions write = unlogged_write();
  for (size_t begin = 0; begin < n; begin += batch_rows) {
    const size_t end = std::min(n, begin + batch_rows);
    rocksdb::WriteBatch batch((end - begin) * (options_.record_bytes + kKeyBytes + 8), 0,
                              kProtectionBytesPerKey, 0);
    for (size_t i = begin; i < end; ++i) {
      const size_t index = sorted[i].index;
      const uint8_t* record = records + index * options_.record_bytes;
      check_write(batch.Put(slice_of(keys, index),
                            {reinterpret_cast<const char*>(record), options_.record_bytes}),
                  "put");
    }
    check_write(db_->Write(write, &batch), "put");
  }
}

void RocksDbStore::remove(const uint8_t* keys, size_t n) {
  SharedLock lock = enter();
  require_writable();
  if (n == 0) return;
  rocksdb::WriteBatch batch(n * (kKeyBytes + 8), 0, kProtectionBytesPerKey, 0);
  for (size_t i = 0; i < n; ++i) check_write(batch.Delete(slice_of(keys, i)), "delete");
  check_write(db_->Write(unlogged_write(), &batch), "delete");
}

std::shared_ptr<Scanner> RocksDbStore::scan(const std::optional<std::string>& start,
                                            const std::optional<std::string>& stop) {
  SharedLock lock = enter();
  std::shared_ptr<Scanner> scanner(new Scanner(shared_from_this()));
  rocksdb::ReadOptions read = whole_store_read();
  if (stop) {
    scanner->stop_ = *stop;
    scanner->stop_slice_ = scanner->stop_;
    read.iterate_upper_bound = &scanner->stop_slice_;
  }
  scanner->iterator_.reset(db_->NewIterator(read));
  if (start) {
    scanner->iterator_->Seek(*start);
  } else {
    scanner->iterator_->SeekToFirst();
  }
  std::lock_guard<std::mutex> scanners_lock(scanners_mutex_);
  scanners_.insert(scanner.get());
  return scanner;
}

void RocksDbStore::forget_scanner(Scanner* scanner) {
  std::lock_guard<std::mutex> lock(scanners_mutex_);
  scanners_.erase(scanner);
  scanner->iterator_.reset();
}

void RocksDbStore::flush() {
  SharedLock lock = enter();
  require_writable();
  check_write(db_->Flush(rocksdb::FlushOptions()), "flush");
}

void RocksDbStore::compact() {
  SharedLock lock = enter();
  require_writable();
  check_write(db_->CompactRange(rocksdb::CompactRangeOptions(), nullptr, nullptr), "compact");
}

void RocksDbStore::checkpoint(const std::string& dir) {
  SharedLock lock = enter();
  require_writable();
  const std::string what = "checkpoint of store '" + path_ + "' into '" + dir + "'";
  rocksdb::Checkpoint* raw = nullptr;
  throw_if_error(rocksdb::Checkpoint::Create(db_.get(), &raw), what);
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(raw);
  throw_if_error(checkpoint->CreateCheckpoint(dir), what);
  fsync_directory(rocks_options_.env, std::filesystem::absolute(dir).parent_path().string());
}

uint64_t RocksDbStore::verify() {
  SharedLock lock = enter();
  const std::string what = "verify of store '" + path_ + "'";
  const rocksdb::ReadOptions read = whole_store_read();
  throw_if_error(db_->VerifyChecksum(read), what);
  const std::unique_ptr<rocksdb::Iterator> iterator(db_->NewIterator(read));
  uint64_t count = 0;
  for (iterator->SeekToFirst(); iterator->Valid(); iterator->Next(), ++count) {
    if (iterator->key().size() != kKeyBytes) {
      throw StoreException(ErrorKind::kCorruption, what + ": a key of " +
                                                       std::to_string(iterator->key().size()) +
                                                       " bytes, not " + std::to_string(kKeyBytes));
    }
    check_record_size(iterator->value().size(),
                      reinterpret_cast<const uint8_t*>(iterator->key().data()));
  }
  throw_if_error(iterator->status(), what);
  return count;
}

std::map<std::string, uint64_t> RocksDbStore::stats() {
  SharedLock lock = enter();
  std::map<std::string, uint64_t> stats;
  const std::pair<const char*, const std::string*> properties[] = {
      {"estimated_keys", &rocksdb::DB::Properties::kEstimateNumKeys},
      {"live_sst_bytes", &rocksdb::DB::Properties::kLiveSstFilesSize},
      {"total_sst_bytes", &rocksdb::DB::Properties::kTotalSstFilesSize},
      {"memtable_bytes", &rocksdb::DB::Properties::kCurSizeAllMemTables},
      {"index_and_filter_bytes", &rocksdb::DB::Properties::kEstimateTableReadersMem},
      {"block_cache_bytes", &rocksdb::DB::Properties::kBlockCacheUsage},
      {"pending_compaction_bytes", &rocksdb::DB::Properties::kEstimatePendingCompactionBytes},
      {"background_errors", &rocksdb::DB::Properties::kBackgroundErrors},
      {"compaction_pending", &rocksdb::DB::Properties::kCompactionPending},
      {"pending_flushes", &rocksdb::DB::Properties::kMemTableFlushPending},
      {"running_flushes", &rocksdb::DB::Properties::kNumRunningFlushes},
      {"running_compactions", &rocksdb::DB::Properties::kNumRunningCompactions},
  };
  for (const auto& [name, property] : properties) {
    uint64_t value = 0;
    db_->GetIntProperty(*property, &value);
    stats[name] = value;
  }
  const std::pair<const char*, rocksdb::Tickers> tickers[] = {
      {"user_bytes_written", rocksdb::BYTES_WRITTEN},
      {"user_bytes_read", rocksdb::NUMBER_MULTIGET_BYTES_READ},
      {"flush_bytes_written", rocksdb::FLUSH_WRITE_BYTES},
      {"compaction_bytes_read", rocksdb::COMPACT_READ_BYTES},
      {"compaction_bytes_written", rocksdb::COMPACT_WRITE_BYTES},
      {"write_stall_micros", rocksdb::STALL_MICROS},
      {"block_cache_hits", rocksdb::BLOCK_CACHE_DATA_HIT},
      {"block_cache_misses", rocksdb::BLOCK_CACHE_DATA_MISS},
      {"bloom_filter_useful", rocksdb::BLOOM_FILTER_USEFUL},
  };
  for (const auto& [name, ticker] : tickers) {
    stats[name] = rocks_options_.statistics->getTickerCount(ticker);
  }
  return stats;
}

uint64_t RocksDbStore::memory_bytes() {
  if (!is_own_process()) return 0;
  const SharedLock lock(open_mutex_);
  if (db_ == nullptr) return 0;
  uint64_t sum = 0;
  for (const std::string* property : {&rocksdb::DB::Properties::kEstimateTableReadersMem,
                                      &rocksdb::DB::Properties::kCurSizeAllMemTables,
                                      &rocksdb::DB::Properties::kBlockCacheUsage}) {
    uint64_t value = 0;
    if (db_->GetIntProperty(*property, &value)) sum += value;
  }
  return sum;
}

void RocksDbStore::close() {
  if (!is_own_process()) return;
  std::unique_lock<std::shared_mutex> lock(open_mutex_);
  if (db_ == nullptr) return;
  {
    std::lock_guard<std::mutex> scanners_lock(scanners_mutex_);
    for (Scanner* scanner : scanners_) scanner->iterator_.reset();
    scanners_.clear();
  }
  rocksdb::Status status;
  rocksdb::Status found;
  // After a failure nothing more is written; RocksDB's own flush on close would hide its error.
  if (options_.mode != OpenMode::kReadOnly && !failure_->failed()) {
    status = db_->Flush(rocksdb::FlushOptions());
    if (status.ok()) found = find_live_files(db_.get(), rocks_options_.env, path_);
  }
  const rocksdb::Status closed = db_->Close();
  db_.reset();
  throw_if_error(status, "flush on close of store '" + path_ + "'");
  throw_if_error(found, "store '" + path_ + "' has lost rows");
  if (!failure_->failed()) {
    throw_if_error(closed, "close of store '" + path_ + "'");
  } else if (!failure_->reported()) {
    failure_->throw_if_set(path_);  // of a background job, after the last call
  }
}

void RocksDbStore::require_never_written() {
  std::vector<rocksdb::LiveFileMetaData> files;
  db_->GetLiveFilesMetaData(&files);
  if (db_->GetLatestSequenceNumber() == 0 && files.empty()) return;
  throw StoreException(
      ErrorKind::kConfig,
      "bulk import needs an empty store, but '" + path_ +
          "' has been written to; write the rows with load_rows, or choose another "
          "ssd directory");
}

void RocksDbStore::ingest_files(const std::vector<std::string>& files) {
  rocksdb::IngestExternalFileOptions ingest;
  ingest.move_files = true;
  ingest.write_global_seqno = false;  // the files are not written to after their checksums
  check_write(db_->IngestExternalFile(files, ingest), "import");
}

Scanner::~Scanner() { close(); }

void Scanner::close() {
  if (store_->is_own_process()) {
    store_->forget_scanner(this);
  } else {
    (void)iterator_.release();  // as in ~RocksDbStore
  }
}

size_t Scanner::next(uint8_t* keys, uint8_t* records, size_t max_rows) {
  RocksDbStore::SharedLock lock = store_->enter();
  if (iterator_ == nullptr) throw StoreException(ErrorKind::kClosed, "this scan is closed");
  size_t rows = 0;
  for (; rows < max_rows && iterator_->Valid(); ++rows, iterator_->Next()) {
    uint8_t* key = keys + rows * kKeyBytes;
    if (iterator_->key().size() != kKeyBytes) {
      throw StoreException(ErrorKind::kCorruption, "store '" + store_->path_ + "': a key of " +
                                                       std::to_string(iterator_->key().size()) +
                                                       " bytes, not " + std::to_string(kKeyBytes));
    }
    std::memcpy(key, iterator_->key().data(), kKeyBytes);
    store_->check_record_size(iterator_->value().size(), key);
    std::memcpy(records + rows * store_->record_bytes(), iterator_->value().data(),
                store_->record_bytes());
  }
  throw_if_error(iterator_->status(), "scan of store '" + store_->path_ + "'");
  return rows;
}

}  // namespace te
