#include "tests/faults/fault_file_system.h"

#include <rocksdb/system_clock.h>

#include <thread>
#include <utility>

namespace te::faults {
namespace {

using rocksdb::FileOptions;
using rocksdb::FSReadRequest;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

class SequentialFile : public rocksdb::FSSequentialFileWrapper {
 public:
  SequentialFile(FaultFileSystem* faults, std::string name,
                 std::unique_ptr<rocksdb::FSSequentialFile> file)
      : FSSequentialFileWrapper(file.get()),
        faults_(faults),
        name_(std::move(name)),
        file_(std::move(file)) {}

  IOStatus Read(size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* debug) override {
    const IOStatus fault = faults_->next(Need::kRead, "read " + name_);
    if (!fault.ok()) return fault;
    return file_->Read(n, options, result, scratch, debug);
  }

 private:
  FaultFileSystem* const faults_;
  const std::string name_;
  const std::unique_ptr<rocksdb::FSSequentialFile> file_;
};

class RandomAccessFile : public rocksdb::FSRandomAccessFileWrapper {
 public:
  RandomAccessFile(FaultFileSystem* faults, std::string name,
                   std::unique_ptr<rocksdb::FSRandomAccessFile> file)
      : FSRandomAccessFileWrapper(file.get()),
        faults_(faults),
        name_(std::move(name)),
        file_(std::move(file)) {}

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* debug) const override {
    const IOStatus fault = faults_->next(Need::kRead, "read " + name_);
    if (!fault.ok()) return fault;
    return file_->Read(offset, n, options, result, scratch, debug);
  }

  IOStatus MultiRead(FSReadRequest* requests, size_t n, const IOOptions& options,
                     IODebugContext* debug) override {
    for (size_t i = 0; i < n; ++i) {
      FSReadRequest& r = requests[i];
      r.status = Read(r.offset, r.len, options, &r.result, r.scratch, debug);
    }
    return IOStatus::OK();
  }

  IOStatus Prefetch(uint64_t offset, size_t n, const IOOptions& options,
                    IODebugContext* debug) override {
    return file_->Prefetch(offset, n, options, debug);
  }

 private:
  FaultFileSystem* const faults_;
  const std::string name_;
  const std::unique_ptr<rocksdb::FSRandomAccessFile> file_;
};

class WritableFile : public rocksdb::FSWritableFileWrapper {
 public:
  WritableFile(FaultFileSystem* faults, std::string name,
               std::unique_ptr<rocksdb::FSWritableFile> file)
      : FSWritableFileWrapper(file.get()),
        faults_(faults),
        name_(std::move(name)),
        file_(std::move(file)) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    bool half = false;
    const IOStatus fault = faults_->next(Need::kRoom, "append to " + name_, &half);
    if (half) {
      const IOStatus status = file_->Append(Slice(data.data(), data.size() / 2), options, debug);
      return status.ok() ? fault : status;
    }
    return fault.ok() ? file_->Append(data, options, debug) : fault;
  }

  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& /*info*/, IODebugContext* debug) override {
    return Append(data, options, debug);
  }

  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* debug) override {
    const IOStatus fault = faults_->next(Need::kNothing, "truncate " + name_);
    return fault.ok() ? file_->Truncate(size, options, debug) : fault;
  }

  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    return synced(options, debug, &rocksdb::FSWritableFile::Sync);
  }

  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return synced(options, debug, &rocksdb::FSWritableFile::Fsync);
  }

  IOStatus Close(const IOOptions& options, IODebugContext* debug) override {
    const IOStatus fault = faults_->next(Need::kNothing, "close " + name_);
    const IOStatus status = file_->Close(options, debug);
    return fault.ok() ? status : fault;
  }

  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&, IODebugContext*) override {
    return IOStatus::OK();  // a hint: nothing is durable by it
  }

 private:
  using SyncMethod = IOStatus (rocksdb::FSWritableFile::*)(const IOOptions&, IODebugContext*);

  IOStatus synced(const IOOptions& options, IODebugContext* debug, SyncMethod method) {
    const IOStatus fault = faults_->next(Need::kRoom, "fsync " + name_);
    if (!fault.ok()) return fault;
    uint64_t length = 0;  // a file that was reopened for appending does not know it
    IOStatus status = faults_->target()->GetFileSize(name_, options, &length, debug);
    if (status.ok()) status = (file_.get()->*method)(options, debug);
    if (status.ok()) faults_->disk()->synced_file(name_, length);
    return status;
  }

  FaultFileSystem* const faults_;
  const std::string name_;
  const std::unique_ptr<rocksdb::FSWritableFile> file_;
};

class Directory : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(FaultFileSystem* faults, std::string name, std::unique_ptr<rocksdb::FSDirectory>&& dir)
      : FSDirectoryWrapper(std::move(dir)), faults_(faults), name_(std::move(name)) {}

  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    const IOStatus fault = faults_->next(Need::kRoom, "fsync directory " + name_);
    if (!fault.ok()) return fault;
    const IOStatus status = FSDirectoryWrapper::Fsync(options, debug);
    if (status.ok()) faults_->disk()->synced_directory(name_);
    return status;
  }

  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& /*reason*/) override {
    return Fsync(options, debug);  // RocksDB leaves some of them out on certain file systems
  }

 private:
  FaultFileSystem* const faults_;
  const std::string name_;
};

class ImpatientClock : public rocksdb::SystemClockWrapper {
 public:
  using SystemClockWrapper::SystemClockWrapper;
  const char* Name() const override { return "TieredEmbedImpatient"; }
  void SleepForMicroseconds(int /*micros*/) override { std::this_thread::yield(); }
};

class FaultEnv : public rocksdb::EnvWrapper {
 public:
  explicit FaultEnv(std::unique_ptr<rocksdb::Env> target) : EnvWrapper(std::move(target)) {
    system_clock_ = std::make_shared<ImpatientClock>(system_clock_);
  }
  const char* Name() const override { return "TieredEmbedFaults"; }
};

}  // namespace

std::unique_ptr<rocksdb::Env> make_env(std::shared_ptr<FaultFileSystem> faults) {
  return std::make_unique<FaultEnv>(rocksdb::NewCompositeEnv(std::move(faults)));
}

FaultFileSystem::FaultFileSystem(std::shared_ptr<DiskModel> disk)
    : FileSystemWrapper(rocksdb::FileSystem::Default()), disk_(std::move(disk)) {}

void FaultFileSystem::arm(const Fault& fault) {
  std::lock_guard<std::mutex> lock(mutex_);
  fault_ = fault;
  num_operations_ = 0;
  fired_ = false;
}

bool FaultFileSystem::fired() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return fired_;
}

uint64_t FaultFileSystem::num_operations() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_operations_;
}

IOStatus FaultFileSystem::next(Need need, const std::string& what, bool* short_write) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++num_operations_;
  if (fault_.kind == FaultKind::kNone || num_operations_ < fault_.at) return IOStatus::OK();
  if (fault_.spares_reads && need == Need::kRead) return IOStatus::OK();
  const bool once = !fault_.lasting && fault_.kind != FaultKind::kPowerLoss;
  if (once && fired_) return IOStatus::OK();
  if (fault_.kind == FaultKind::kNoSpace) {
    if (need != Need::kRoom) return IOStatus::OK();
    fired_ = true;
    return IOStatus::NoSpace("injected at operation " + std::to_string(num_operations_), what);
  }
  fired_ = true;
  if (short_write != nullptr) *short_write = fault_.kind == FaultKind::kShortWrite;
  return IOStatus::IOError("injected at operation " + std::to_string(num_operations_), what);
}

IOStatus FaultFileSystem::NewSequentialFile(const std::string& name, const FileOptions& options,
                                            std::unique_ptr<rocksdb::FSSequentialFile>* result,
                                            Debug* debug) {
  IOStatus status = next(Need::kRead, "open " + name);
  if (status.ok()) status = target()->NewSequentialFile(name, options, result, debug);
  if (status.ok()) *result = std::make_unique<SequentialFile>(this, name, std::move(*result));
  return status;
}

IOStatus FaultFileSystem::NewRandomAccessFile(const std::string& name, const FileOptions& options,
                                              std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                                              Debug* debug) {
  IOStatus status = next(Need::kRead, "open " + name);
  if (status.ok()) status = target()->NewRandomAccessFile(name, options, result, debug);
  if (status.ok()) *result = std::make_unique<RandomAccessFile>(this, name, std::move(*result));
  return status;
}

IOStatus FaultFileSystem::NewWritableFile(const std::string& name, const FileOptions& options,
                                          std::unique_ptr<rocksdb::FSWritableFile>* result,
                                          Debug* debug) {
  IOStatus status = next(Need::kRoom, "create " + name);
  if (!status.ok()) return status;
  // A new file, not a shorter old one: the model's link to the old one keeps its bytes.
  if (target()->FileExists(name, {}, debug).ok()) {
    status = target()->DeleteFile(name, {}, debug);
    if (!status.ok()) return status;
  }
  status = target()->NewWritableFile(name, options, result, debug);
  if (!status.ok()) return status;
  disk_->created_file(name);
  *result = std::make_unique<WritableFile>(this, name, std::move(*result));
  return status;
}

IOStatus FaultFileSystem::ReopenWritableFile(const std::string& name, const FileOptions& options,
                                             std::unique_ptr<rocksdb::FSWritableFile>* result,
                                             Debug* debug) {
  IOStatus status = next(Need::kRoom, "open " + name);
  if (!status.ok()) return status;
  const bool is_new = !target()->FileExists(name, {}, debug).ok();
  status = target()->ReopenWritableFile(name, options, result, debug);
  if (!status.ok()) return status;
  if (is_new) disk_->created_file(name);
  *result = std::make_unique<WritableFile>(this, name, std::move(*result));
  return status;
}

IOStatus FaultFileSystem::ReuseWritableFile(const std::string& name, const std::string& old_name,
                                            const FileOptions& /*options*/,
                                            std::unique_ptr<rocksdb::FSWritableFile>* /*result*/,
                                            Debug* /*debug*/) {
  return IOStatus::NotSupported("reuse of " + old_name,
                                name);  // of write-ahead logs: there are none
}

IOStatus FaultFileSystem::NewRandomRWFile(const std::string& name, const FileOptions& /*options*/,
                                          std::unique_ptr<rocksdb::FSRandomRWFile>* /*result*/,
                                          Debug* /*debug*/) {
  return IOStatus::NotSupported("writing in place", name);
}

IOStatus FaultFileSystem::NewDirectory(const std::string& name, const Options& options,
                                       std::unique_ptr<rocksdb::FSDirectory>* result,
                                       Debug* debug) {
  IOStatus status = next(Need::kNothing, "open directory " + name);
  if (status.ok()) status = target()->NewDirectory(name, options, result, debug);
  if (status.ok()) *result = std::make_unique<Directory>(this, name, std::move(*result));
  return status;
}

IOStatus FaultFileSystem::DeleteFile(const std::string& name, const Options& options,
                                     Debug* debug) {
  IOStatus status = next(Need::kNothing, "delete " + name);
  if (status.ok()) status = target()->DeleteFile(name, options, debug);
  if (status.ok()) disk_->removed(name);
  return status;
}

IOStatus FaultFileSystem::Truncate(const std::string& name, size_t size, const Options& options,
                                   Debug* debug) {
  const IOStatus status = next(Need::kNothing, "truncate " + name);
  return status.ok() ? target()->Truncate(name, size, options, debug) : status;
}

IOStatus FaultFileSystem::CreateDir(const std::string& name, const Options& options, Debug* debug) {
  IOStatus status = next(Need::kRoom, "create directory " + name);
  if (status.ok()) status = target()->CreateDir(name, options, debug);
  if (status.ok()) disk_->created_directory(name);
  return status;
}

IOStatus FaultFileSystem::CreateDirIfMissing(const std::string& name, const Options& options,
                                             Debug* debug) {
  IOStatus status = next(Need::kRoom, "create directory " + name);
  if (status.ok()) status = target()->CreateDirIfMissing(name, options, debug);
  if (status.ok()) disk_->created_directory(name);
  return status;
}

IOStatus FaultFileSystem::DeleteDir(const std::string& name, const Options& options, Debug* debug) {
  IOStatus status = next(Need::kNothing, "delete directory " + name);
  if (status.ok()) status = target()->DeleteDir(name, options, debug);
  if (status.ok()) disk_->removed(name);
  return status;
}

IOStatus FaultFileSystem::RenameFile(const std::string& from, const std::string& to,
                                     const Options& options, Debug* debug) {
  IOStatus status = next(Need::kRoom, "rename " + from);
  if (status.ok()) status = target()->RenameFile(from, to, options, debug);
  if (status.ok()) disk_->renamed(from, to);
  return status;
}

IOStatus FaultFileSystem::LinkFile(const std::string& from, const std::string& to,
                                   const Options& options, Debug* debug) {
  IOStatus status = next(Need::kRoom, "link " + from);
  if (status.ok()) status = target()->LinkFile(from, to, options, debug);
  if (status.ok()) disk_->linked(from, to);
  return status;
}

}  // namespace te::faults
