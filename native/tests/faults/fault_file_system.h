// A RocksDB FileSystem whose k-th operation goes wrong.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "tests/faults/disk_model.h"

namespace te::faults {

enum class FaultKind {
  kNone,
  kError,       // the operation is not done: an I/O error
  kNoSpace,     // whatever needs room is not done; the rest is
  kShortWrite,  // half of the bytes are written, then an error; another operation just fails
  kPowerLoss,   // nothing is done from here on
};

struct Fault {
  FaultKind kind = FaultKind::kNone;
  uint64_t at = 0;       // of which operation, the first is 1
  bool lasting = false;  // and of all later ones; a power loss always lasts
  bool spares_reads = false;
};

// Of an operation: whether it only reads, and else whether a full disk refuses it.
enum class Need { kRoom, kNothing, kRead };

// Counts reads, writes, fsyncs and changes of directories; keeps `disk` informed. May be used from
// any thread.
class FaultFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystem(std::shared_ptr<DiskModel> disk);

  const char* Name() const override { return "TieredEmbedFaults"; }

  // Begins to count at 0.
  void arm(const Fault& fault);
  void disarm() { arm({}); }
  // Whether the fault has come.
  bool fired() const;
  uint64_t num_operations() const;

  // Whether and how the next operation fails. `short_write` is set where half is to be written;
  // null for an operation that writes no bytes.
  rocksdb::IOStatus next(Need need, const std::string& what, bool* short_write = nullptr);
  DiskModel* disk() const { return disk_.get(); }

  using Options = rocksdb::IOOptions;
  using Debug = rocksdb::IODebugContext;
  using IOStatus = rocksdb::IOStatus;

  IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions& options,
                             std::unique_ptr<rocksdb::FSSequentialFile>* result,
                             Debug* debug) override;
  IOStatus NewRandomAccessFile(const std::string& name, const rocksdb::FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               Debug* debug) override;
  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* result, Debug* debug) override;
  IOStatus ReopenWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                              std::unique_ptr<rocksdb::FSWritableFile>* result,
                              Debug* debug) override;
  IOStatus ReuseWritableFile(const std::string& name, const std::string& old_name,
                             const rocksdb::FileOptions& options,
                             std::unique_ptr<rocksdb::FSWritableFile>* result,
                             Debug* debug) override;
  IOStatus NewRandomRWFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSRandomRWFile>* result, Debug* debug) override;
  IOStatus NewDirectory(const std::string& name, const Options& options,
                        std::unique_ptr<rocksdb::FSDirectory>* result, Debug* debug) override;
  IOStatus DeleteFile(const std::string& name, const Options& options, Debug* debug) override;
  IOStatus Truncate(const std::string& name, size_t size, const Options& options,
                    Debug* debug) override;
  IOStatus CreateDir(const std::string& name, const Options& options, Debug* debug) override;
  IOStatus CreateDirIfMissing(const std::string& name, const Options& options,
                              Debug* debug) override;
  IOStatus DeleteDir(const std::string& name, const Options& options, Debug* debug) override;
  IOStatus RenameFile(const std::string& from, const std::string& to, const Options& options,
                      Debug* debug) override;
  IOStatus LinkFile(const std::string& from, const std::string& to, const Options& options,
                    Debug* debug) override;

 private:
  const std::shared_ptr<DiskModel> disk_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  Fault fault_;
  uint64_t num_operations_ = 0;
  bool fired_ = false;
};

// An environment over `faults`, whose clock does not sleep: RocksDB waits a second after each error
// of its background threads.
std::unique_ptr<rocksdb::Env> make_env(std::shared_ptr<FaultFileSystem> faults);

}  // namespace te::faults
