#include "store/row_file_system.h"

#include <fcntl.h>
#include <rocksdb/file_system.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "store/file_reads.h"

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
  // Takes over `fd`.
  RowFile(std::string name, int fd, bool direct)
      : name_(std::move(name)), fd_(fd), direct_(direct) {}
  ~RowFile() override { ::close(fd_); }

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& /*options*/, Slice* result,
                char* scratch, IODebugContext* /*debug*/) const override {
    return read_range(opened(), 0, offset, n, result, scratch);
  }

  IOStatus MultiRead(FSReadRequest* requests, size_t num_requests, const IOOptions& /*options*/,
                     IODebugContext* /*debug*/) override {
    read_together(opened(), requests, num_requests);
    return IOStatus::OK();
  }

  IOStatus Prefetch(uint64_t offset, size_t n, const IOOptions& /*options*/,
                    IODebugContext* /*debug*/) override {
    if (direct_) return IOStatus::NotSupported("Prefetch of direct reads");
    // Only ever a hint: what it does not bring is read.
    ::readahead(fd_, static_cast<off_t>(offset), n);
    return IOStatus::OK();
  }

  void Hint(AccessPattern pattern) override {
    if (direct_) return;
    constexpr int kAdvice[] = {POSIX_FADV_NORMAL, POSIX_FADV_RANDOM, POSIX_FADV_SEQUENTIAL,
                               POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED};
    ::posix_fadvise(fd_, 0, 0, kAdvice[pattern]);
  }

  IOStatus InvalidateCache(size_t offset, size_t length) override {
    if (!direct_) {
      ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(length),
                      POSIX_FADV_DONTNEED);
    }
    return IOStatus::OK();
  }

  bool use_direct_io() const override { return direct_; }
  size_t GetRequiredBufferAlignment() const override { return kPageBytes; }

 private:
  OpenFile opened() const { return {name_, fd_, direct_}; }

  const std::string name_;
  const int fd_;
  const bool direct_;
};

class RowFileSystem : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;

  const char* Name() const override { return "TieredEmbedRows"; }

  IOStatus NewRandomAccessFile(const std::string& name, const FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               IODebugContext* debug) override {
    // RocksDB's own file tells whether direct reads are possible here. It does not tell its
    // descriptor; it is closed when ours takes its place.
    const IOStatus status = target()->NewRandomAccessFile(name, options, result, debug);
    if (!status.ok() || options.use_mmap_reads) return status;
    const bool direct = options.use_direct_reads;
    if (direct && (*result)->GetRequiredBufferAlignment() > kPageBytes) return status;
    const int fd = ::open(name.c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd >= 0) *result = std::make_unique<RowFile>(name, fd, direct);
    return status;
  }
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
