#include "store/file_handles.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>
#include <vector>

namespace te {
namespace {

using Handle = std::shared_ptr<const FileHandle>;

constexpr int64_t kSmallFileBytes = int64_t{4} << 20;
constexpr size_t kSmallFiles = 16;

// How many descriptors the process may have.
size_t process_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 1 << 20;
  return static_cast<size_t>(limit.rlim_cur);
}

// A quarter, because each store needs a few of its own, and the user's program some too.
size_t large_limit() { return std::max<size_t>(8, process_limit() / 4); }
size_t small_limit() { return std::clamp<size_t>(process_limit() / 64, 4, kSmallFiles); }

struct OfProcess {
  FileHandles small{small_limit};
  FileHandles large{large_limit};
};

// Never destroyed: files of stores that nobody closes may outlive everything.
std::atomic<OfProcess*> of_this_process{nullptr};
// A lock may be held where the process forks. What is open then belongs to stores that the child
// may not use.
[[maybe_unused]] const int registered =
    ::pthread_atfork(nullptr, nullptr, [] { of_this_process.store(nullptr); });

OfProcess& handles_of_process() {
  OfProcess* found = of_this_process.load();
  if (found == nullptr) {
    auto* const made = new OfProcess;
    if (of_this_process.compare_exchange_strong(found, made)) {
      found = made;
    } else {
      delete made;  // another thread was faster
    }
  }
  return *found;
}

}  // namespace

FileHandle::~FileHandle() { ::close(fd_); }

std::unique_ptr<HandledFile> HandledFile::open(const std::string& name, int flags) {
  std::unique_ptr<HandledFile> file(new HandledFile(name, flags));
  Handle handle = file->open_anew();
  if (handle == nullptr) return nullptr;
  struct stat facts{};
  if (::fstat(handle->fd(), &facts) != 0) return nullptr;
  file->device_ = facts.st_dev;
  file->inode_ = facts.st_ino;
  file->handles_ = &FileHandles::of_process(facts.st_size);
  file->handles_->insert(file.get(), std::move(handle));
  return file;
}

HandledFile::~HandledFile() {
  if (handles_ == nullptr) return;
  Handle closed;  // without the lock
  std::lock_guard<std::mutex> lock(handles_->mutex_);
  if (handle_ != nullptr) handles_->open_.erase(place_);
  closed = std::move(handle_);
}

Handle HandledFile::open_anew() const {
  int fd = ::open(name_.c_str(), flags_);
  if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
    FileHandles::close_all();
    fd = ::open(name_.c_str(), flags_);
  }
  return fd < 0 ? nullptr : std::make_shared<const FileHandle>(fd);
}

Handle HandledFile::handle() {
  int advice;
  {
    std::lock_guard<std::mutex> lock(handles_->mutex_);
    if (handle_ != nullptr) {
      handles_->open_.splice(handles_->open_.begin(), handles_->open_, place_);
      return handle_;
    }
    advice = advice_;
  }
  Handle handle = open_anew();
  if (handle == nullptr) return nullptr;
  struct stat facts{};
  if (::fstat(handle->fd(), &facts) != 0) return nullptr;
  if (facts.st_dev != device_ || facts.st_ino != inode_) {
    errno = ESTALE;
    return nullptr;
  }
  if (advice != 0) ::posix_fadvise(handle->fd(), 0, 0, advice);
  return handles_->insert(this, std::move(handle));
}

void HandledFile::advise(int advice) {
  Handle handle;
  {
    std::lock_guard<std::mutex> lock(handles_->mutex_);
    advice_ = advice;
    handle = handle_;
  }
  if (handle != nullptr) ::posix_fadvise(handle->fd(), 0, 0, advice);
}

FileHandles& FileHandles::of_process(int64_t file_bytes) {
  OfProcess& handles = handles_of_process();
  return file_bytes < kSmallFileBytes ? handles.small : handles.large;
}

void FileHandles::close_all() {
  OfProcess& handles = handles_of_process();
  handles.small.close_down_to(0);
  handles.large.close_down_to(0);
}

size_t FileHandles::num_open() {
  OfProcess& of_process = handles_of_process();
  size_t open = 0;
  for (FileHandles* handles : {&of_process.small, &of_process.large}) {
    std::lock_guard<std::mutex> lock(handles->mutex_);
    open += handles->open_.size();
  }
  return open;
}

Handle FileHandles::insert(HandledFile* file, Handle handle) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (file->handle_ != nullptr) return file->handle_;
    file->handle_ = handle;
    file->place_ = open_.insert(open_.begin(), file);
  }
  close_down_to(std::max<size_t>(1, limit_()));
  return handle;
}

void FileHandles::close_down_to(size_t most) {
  std::vector<Handle> closed;  // without the lock; once their readers are done with them
  std::lock_guard<std::mutex> lock(mutex_);
  while (open_.size() > most) {
    closed.push_back(std::move(open_.back()->handle_));
    open_.back()->handle_ = nullptr;
    open_.pop_back();
  }
}

}  // namespace te
