// Rows of one pool on disk: fixed 12-byte keys (4-byte table key, 8-byte big-endian row id) and
// values of `record_bytes` bytes each, in one RocksDB with one column family.
//
// Durability: the write-ahead log is off. What flush() or checkpoint() has returned for is on disk;
// anything later may be lost when the process dies.
//
// Threads: every method may be called from any thread at any time, close() included; it waits for
// the calls in progress. A Scanner or an SstImporter belongs to one thread at a time.
//
// Errors: every method throws StoreException. After a failed write, flush or background job every
// later call except close() throws, naming that first failure. In a process other than the one
// that opened the store every call throws kClosed, and destruction frees nothing of RocksDB.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/iterator.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include "store/rocksdb_options.h"
#include "store/row_keys.h"
#include "store/store_error.h"

namespace te {

class FailureState;  // the first failure of a store; set from RocksDB's threads too
class Scanner;

class RocksDbStore : public std::enable_shared_from_this<RocksDbStore> {
 public:
  static std::shared_ptr<RocksDbStore> open(const std::string& path, const StoreOptions& options);
  ~RocksDbStore();

  RocksDbStore(const RocksDbStore&) = delete;
  RocksDbStore& operator=(const RocksDbStore&) = delete;

  // Copies the record of keys[i] to out[i] and sets found[i], or clears found[i] and leaves out[i]
  // alone. Keys may repeat and need no order. After an exception `out` and `found` are unspecified.
  // keys: (n, 12), out: (n, record_bytes), found: (n); all owned by the caller.
  void get(const uint8_t* keys, size_t n, uint8_t* out, bool* found);

  // Inserts or replaces. Of a repeated key the last record wins.
  void put(const uint8_t* keys, const uint8_t* records, size_t n);
  void remove(const uint8_t* keys, size_t n);

  // A view of the rows as of now, in key order, start inclusive and stop exclusive.
  std::shared_ptr<Scanner> scan(const std::optional<std::string>& start,
                                const std::optional<std::string>& stop);

  void flush();
  void compact();

  // Makes `dir` (which must not exist) an openable copy: hard links where the file system allows.
  void checkpoint(const std::string& dir);

  // Reads every block of every file; returns the number of records.
  uint64_t verify();

  std::map<std::string, uint64_t> stats();

  // Memory that RocksDB holds for this store: index and filters of its files, memtables, block
  // cache. 0 once closed; throws nothing, not even an earlier failure.
  uint64_t memory_bytes();

  // Flushes, then frees everything; open Scanners end with kClosed. A second call does nothing.
  // Everything is freed even when close() throws: where the flush fails, files were removed, or a
  // background job had failed and no call has reported it.
  void close();

  size_t record_bytes() const { return options_.record_bytes; }
  const std::string& path() const { return path_; }

 private:
  friend class Scanner;
  friend class SstImporter;
  using SharedLock = std::shared_lock<std::shared_mutex>;

  RocksDbStore(const std::string& path, const StoreOptions& options);

  // Every call on an open store starts here: throws unless the store is usable, and keeps it open
  // while the returned lock lives.
  SharedLock enter();
  bool is_own_process() const;
  void require_writable() const;
  // Records a failed write and throws.
  void check_write(const rocksdb::Status& status, const char* what);
  void check_record_size(size_t size, const uint8_t* key) const;

  // For SstImporter. ingest_files takes over the files' contents, all or none of them.
  void require_never_written();
  void ingest_files(const std::vector<std::string>& files);

  void forget_scanner(Scanner* scanner);

  const std::string path_;
  const StoreOptions options_;
  const rocksdb::Options rocks_options_;
  const pid_t owner_pid_;
  const std::shared_ptr<FailureState> failure_;

  // Held shared by calls in progress, exclusively by close().
  std::shared_mutex open_mutex_;
  // Guarded by open_mutex_; null once closed.
  std::unique_ptr<rocksdb::DB> db_;

  std::mutex scanners_mutex_;  // taken after open_mutex_
  std::set<Scanner*> scanners_;
};

// Rows in key order, as they were when the scan began.
class Scanner {
 public:
  ~Scanner();
  Scanner(const Scanner&) = delete;
  Scanner& operator=(const Scanner&) = delete;

  // Copies up to max_rows rows and returns how many; 0 at the end.
  // keys: (max_rows, 12), records: (max_rows, record_bytes).
  size_t next(uint8_t* keys, uint8_t* records, size_t max_rows);

  void close();

  size_t record_bytes() const { return store_->record_bytes(); }

 private:
  friend class RocksDbStore;
  explicit Scanner(std::shared_ptr<RocksDbStore> store) : store_(std::move(store)) {}

  const std::shared_ptr<RocksDbStore> store_;
  std::string stop_;
  rocksdb::Slice stop_slice_;  // RocksDB keeps a pointer to it
  // Guarded by the store's scanners_mutex_ for its lifetime: the store's close() resets it.
  std::unique_ptr<rocksdb::Iterator> iterator_;
};

}  // namespace te
