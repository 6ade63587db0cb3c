// Files that RocksDB writes, where its own way costs too much for a store that is one of many.
#pragma once

#include <rocksdb/file_system.h>

#include <memory>
#include <string>
#include <utility>

namespace te {

// While one of these lives, nothing that its thread writes or creates is synced. For the creation
// of a store, which syncs ten times on its way and needs to be durable only as a whole: by
// sync_store() afterwards. REQUIRES: not nested; ended by the thread that made it.
class DeferredSyncs {
 public:
  DeferredSyncs();
  ~DeferredSyncs();
  DeferredSyncs(const DeferredSyncs&) = delete;
  DeferredSyncs& operator=(const DeferredSyncs&) = delete;

  // Whether the calling thread defers.
  static bool active();
};

// Makes a new store durable: its files, and their names.
rocksdb::IOStatus sync_store(const std::string& dir);

// A file that respects DeferredSyncs.
class DeferringFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  using FSWritableFileOwnerWrapper::FSWritableFileOwnerWrapper;
  rocksdb::IOStatus Sync(const rocksdb::IOOptions& options,
                         rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options,
                          rocksdb::IODebugContext* debug) override;
};

// A write-ahead log, open only from its first byte on. We write none, but RocksDB has one for each
// store, and would keep it open.
class EmptyLog : public rocksdb::FSWritableFile {
 public:
  // REQUIRES: the file exists, and is empty.
  EmptyLog(std::shared_ptr<rocksdb::FileSystem> files, std::string name,
           const rocksdb::FileOptions& options)
      : files_(std::move(files)), name_(std::move(name)), options_(options) {}

  using IOOptions = rocksdb::IOOptions;
  using IOStatus = rocksdb::IOStatus;
  using Debug = rocksdb::IODebugContext;

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options, Debug* debug) override;
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info, Debug* debug) override;
  IOStatus Truncate(uint64_t size, const IOOptions& options, Debug* debug) override;
  IOStatus Close(const IOOptions& options, Debug* debug) override;
  IOStatus Flush(const IOOptions& options, Debug* debug) override;
  IOStatus Sync(const IOOptions& options, Debug* debug) override;
  IOStatus Fsync(const IOOptions& options, Debug* debug) override;
  IOStatus RangeSync(uint64_t offset, uint64_t n, const IOOptions& options, Debug* debug) override;
  uint64_t GetFileSize(const IOOptions& options, Debug* debug) override;
  bool IsSyncThreadSafe() const override { return true; }
  void PrepareWrite(size_t /*offset*/, size_t /*n*/, const IOOptions& /*options*/,
                    Debug* /*debug*/) override {}  // allocates nothing ahead

 private:
  IOStatus open(Debug* debug);

  const std::shared_ptr<rocksdb::FileSystem> files_;
  const std::string name_;
  const rocksdb::FileOptions options_;
  std::unique_ptr<rocksdb::FSWritableFile> opened_;  // null: nothing was written
};

}  // namespace te
