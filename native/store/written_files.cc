#include "store/written_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace te {
namespace {

using rocksdb::DataVerificationInfo;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

thread_local bool defers = false;

// Returns 0 or errno.
int sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  return error;
}

IOStatus failed_sync(const std::string& path, int error) {
  return IOStatus::IOError("fsync " + path, std::strerror(error));
}

}  // namespace

DeferredSyncs::DeferredSyncs() { defers = true; }
DeferredSyncs::~DeferredSyncs() { defers = false; }
bool DeferredSyncs::active() { return defers; }

IOStatus sync_store(const std::string& dir) {
  std::error_code error;
  for (std::filesystem::directory_iterator file(dir, error), end; !error && file != end;
       file.increment(error)) {
    const std::string path = file->path().string();
    // Nobody reads the options, and locks and the empty log have no bytes.
    if (file->path().filename().string().rfind("OPTIONS", 0) == 0) continue;
    std::error_code gone;
    if (file->file_size(gone) == 0) continue;
    // RocksDB removes its first manifest in the background.
    const int failure = sync_path(path);
    if (failure != 0 && failure != ENOENT) return failed_sync(path, failure);
  }
  if (error) return IOStatus::IOError("cannot read " + dir, error.message());
  const int failure = sync_path(dir);
  return failure == 0 ? IOStatus::OK() : failed_sync(dir, failure);
}

IOStatus DeferringFile::Sync(const IOOptions& options, IODebugContext* debug) {
  return defers ? IOStatus::OK() : FSWritableFileOwnerWrapper::Sync(options, debug);
}

IOStatus DeferringFile::Fsync(const IOOptions& options, IODebugContext* debug) {
  return defers ? IOStatus::OK() : FSWritableFileOwnerWrapper::Fsync(options, debug);
}

IOStatus EmptyLog::open(Debug* debug) {
  if (opened_ != nullptr) return IOStatus::OK();
  return files_->ReopenWritableFile(name_, options_, &opened_, debug);
}

IOStatus EmptyLog::Append(const Slice& data, const IOOptions& options, Debug* debug) {
  const IOStatus status = open(debug);
  return status.ok() ? opened_->Append(data, options, debug) : status;
}

IOStatus EmptyLog::Append(const Slice& data, const IOOptions& options,
                          const DataVerificationInfo& info, Debug* debug) {
  const IOStatus status = open(debug);
  return status.ok() ? opened_->Append(data, options, info, debug) : status;
}

IOStatus EmptyLog::Truncate(uint64_t size, const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? IOStatus::OK() : opened_->Truncate(size, options, debug);
}

IOStatus EmptyLog::Close(const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? IOStatus::OK() : opened_->Close(options, debug);
}

IOStatus EmptyLog::Flush(const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? IOStatus::OK() : opened_->Flush(options, debug);
}

IOStatus EmptyLog::Sync(const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? IOStatus::OK() : opened_->Sync(options, debug);
}

IOStatus EmptyLog::Fsync(const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? IOStatus::OK() : opened_->Fsync(options, debug);
}

IOStatus EmptyLog::RangeSync(uint64_t offset, uint64_t n, const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? IOStatus::OK() : opened_->RangeSync(offset, n, options, debug);
}

uint64_t EmptyLog::GetFileSize(const IOOptions& options, Debug* debug) {
  return opened_ == nullptr ? 0 : opened_->GetFileSize(options, debug);
}

}  // namespace te
