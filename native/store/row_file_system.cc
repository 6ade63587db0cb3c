#include "store/row_file_system.h"

#include <fcntl.h>
#include <rocksdb/file_system.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "store/file_handles.h"
#include "store/file_reads.h"
#include "store/written_files.h"

namespace te {
namespace {

using rocksdb::FileOptions;
using rocksdb::FSReadRequest;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

class RowFile : public rocksdb::FSRandomAccessFile {
 public:
  RowFile(std::unique_ptr<HandledFile> file, bool direct)
      : file_(std::move(file)), direct_(direct) {}

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& /*options*/, Slice* result,
                char* scratch, IODebugContext* /*debug*/) const override {
    const std::shared_ptr<const FileHandle> handle = file_->handle();
    if (handle == nullptr) return cannot_open();
    return read_range({file_->name(), handle->fd(), direct_}, 0, offset, n, result, scratch);
  }

  IOStatus MultiRead(FSReadRequest* requests, size_t num_requests, const IOOptions& /*options*/,
                     IODebugContext* /*debug*/) override {
    const std::shared_ptr<const FileHandle> handle = file_->handle();
    if (handle == nullptr) return cannot_open();
    read_together({file_->name(), handle->fd(), direct_}, requests, num_requests);
    return IOStatus::OK();
  }

  IOStatus Prefetch(uint64_t offset, size_t n, const IOOptions& /*options*/,
                    IODebugContext* /*debug*/) override {
    if (direct_) return IOStatus::NotSupported("Prefetch of direct reads");
    const std::shared_ptr<const FileHandle> handle = file_->handle();
    if (handle == nullptr) return cannot_open();
    // Only ever a hint: what it does not bring is read.
    ::readahead(handle->fd(), static_cast<off_t>(offset), n);
    return IOStatus::OK();
  }

  void Hint(AccessPattern pattern) override {
    if (direct_) return;
    if (pattern == kNormal) file_->advise(POSIX_FADV_NORMAL);
    if (pattern == kRandom) file_->advise(POSIX_FADV_RANDOM);
    if (pattern == kSequential) file_->advise(POSIX_FADV_SEQUENTIAL);
  }

  IOStatus InvalidateCache(size_t offset, size_t length) override {
    if (direct_) return IOStatus::OK();
    const std::shared_ptr<const FileHandle> handle = file_->handle();
    if (handle == nullptr) return cannot_open();
    ::posix_fadvise(handle->fd(), static_cast<off_t>(offset), static_cast<off_t>(length),
                    POSIX_FADV_DONTNEED);
    return IOStatus::OK();
  }

  bool use_direct_io() const override { return direct_; }
  size_t GetRequiredBufferAlignment() const override { return kPageBytes; }

 private:
  IOStatus cannot_open() const {
    return IOStatus::IOError("cannot open " + file_->name() + " again", std::strerror(errno));
  }

  const std::unique_ptr<HandledFile> file_;
  const bool direct_;
};

// A directory that is open only while it is synced.
class RowDirectory : public rocksdb::FSDirectory {
 public:
  RowDirectory(std::shared_ptr<rocksdb::FileSystem> files, std::string name)
      : files_(std::move(files)), name_(std::move(name)) {}

  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return FsyncWithDirOptions(options, debug, rocksdb::DirFsyncOptions());
  }

  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& reason) override {
    if (DeferredSyncs::active()) return IOStatus::OK();
    std::unique_ptr<rocksdb::FSDirectory> opened;
    IOStatus status = files_->NewDirectory(name_, options, &opened, debug);
    if (status.ok()) status = opened->FsyncWithDirOptions(options, debug, reason);
    return status;
  }

  IOStatus Close(const IOOptions& /*options*/, IODebugContext* /*debug*/) override {
    return IOStatus::OK();
  }

 private:
  const std::shared_ptr<rocksdb::FileSystem> files_;
  const std::string name_;
};

class RowFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit RowFileSystem(const std::shared_ptr<rocksdb::FileSystem>& target)
      : FileSystemWrapper(target), target_(target) {}

  const char* Name() const override { return "TieredEmbedRows"; }

  IOStatus NewRandomAccessFile(const std::string& name, const FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               IODebugContext* debug) override {
    const bool direct = options.use_direct_reads;
    const auto open = [&] { return target()->NewRandomAccessFile(name, options, result, debug); };
    if (direct || options.use_mmap_reads) {
      // RocksDB's own file tells what the device asks of direct reads.
      const IOStatus status = with_handles(open);
      if (!status.ok() || options.use_mmap_reads) return status;
      if ((*result)->GetRequiredBufferAlignment() > kPageBytes) return status;
    }
    auto file = HandledFile::open(name, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (file == nullptr) return with_handles(open);  // its own words for the error
    *result = std::make_unique<RowFile>(std::move(file), direct);
    return IOStatus::OK();
  }

  IOStatus NewSequentialFile(const std::string& name, const FileOptions& options,
                             std::unique_ptr<rocksdb::FSSequentialFile>* result,
                             IODebugContext* debug) override {
    return with_handles([&] { return target()->NewSequentialFile(name, options, result, debug); });
  }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* result,
                           IODebugContext* debug) override {
    const IOStatus status =
        with_handles([&] { return target()->NewWritableFile(name, options, result, debug); });
    if (!status.ok()) return status;
    const std::string_view log = ".log";
    if (name.size() > log.size() && name.compare(name.size() - log.size(), log.size(), log) == 0) {
      const IOStatus closed = (*result)->Close(options.io_options, debug);
      if (!closed.ok()) return closed;
      *result = std::make_unique<EmptyLog>(target_, name, options);
    } else if (DeferredSyncs::active()) {
      *result = std::make_unique<DeferringFile>(std::move(*result));
    }
    return status;
  }

  IOStatus NewDirectory(const std::string& name, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* result,
                        IODebugContext* debug) override {
    const auto open = [&] { return target()->NewDirectory(name, options, result, debug); };
    const IOStatus status = with_handles(open);  // whether there is such a directory
    if (status.ok()) *result = std::make_unique<RowDirectory>(target_, name);
    return status;
  }

 private:
  // Where the process has no descriptor left, the files that are read give theirs.
  template <typename Open>
  static IOStatus with_handles(const Open& open) {
    errno = 0;
    IOStatus status = open();
    if (status.ok() || (errno != EMFILE && errno != ENFILE)) return status;
    FileHandles::close_all();
    return open();
  }

  const std::shared_ptr<rocksdb::FileSystem> target_;
};

}  // namespace

rocksdb::Env* row_env() {
  // RocksDB's threads may use it as long as the process lives.
  static rocksdb::Env* const env =
      rocksdb::NewCompositeEnv(std::make_shared<RowFileSystem>(rocksdb::FileSystem::Default()))
          .release();
  return env;
}

}  // namespace te
