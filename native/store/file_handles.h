// Open descriptors of the files that stores read, for the whole process: there are never more than
// a limit, whatever the number of stores and of their files. The one that was used least recently
// is closed, and opened again when it is needed.
//
// Threads: every method may be called from any thread.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>

namespace te {

// An open descriptor; whoever has one may read until they let it go.
class FileHandle {
 public:
  // Takes over `fd`.
  explicit FileHandle(int fd) : fd_(fd) {}
  ~FileHandle();
  FileHandle(const FileHandle&) = delete;
  FileHandle& operator=(const FileHandle&) = delete;

  int fd() const { return fd_; }

 private:
  const int fd_;
};

class FileHandles;

// A file that is open for reading, as far as its user can see.
class HandledFile {
 public:
  // Opens `name`, which must not change; null, with errno set, where that fails.
  // `flags`: of open(2).
  static std::unique_ptr<HandledFile> open(const std::string& name, int flags);
  ~HandledFile();
  HandledFile(const HandledFile&) = delete;
  HandledFile& operator=(const HandledFile&) = delete;

  // A descriptor of the file; null, with errno set, where it cannot be opened again. ESTALE: there
  // is another file in its place.
  std::shared_ptr<const FileHandle> handle();

  // posix_fadvise() for the whole file, also for descriptors that are opened later.
  void advise(int advice);

  const std::string& name() const { return name_; }

 private:
  friend class FileHandles;
  HandledFile(std::string name, int flags) : name_(std::move(name)), flags_(flags) {}
  std::shared_ptr<const FileHandle> open_anew() const;

  const std::string name_;
  const int flags_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  FileHandles* handles_ = nullptr;
  // Guarded by the mutex of handles_.
  int advice_ = 0;
  std::shared_ptr<const FileHandle> handle_;  // null: closed
  std::list<HandledFile*>::iterator place_;   // if handle_ is not null
};

class FileHandles {
 public:
  // `limit()` is asked whenever a file is opened; at least 1.
  explicit FileHandles(std::function<size_t()> limit) : limit_(std::move(limit)) {}

  // Those of files of this size in this process. Small files have few handles between them: they
  // are cheap to open, and every save of a small table makes one. A forked child has its own.
  static FileHandles& of_process(int64_t file_bytes);

  // Closes all; for when something else needs a descriptor.
  static void close_all();

  // How many are open.
  static size_t num_open();

 private:
  friend class HandledFile;
  // Makes `handle`, which was just opened, that of `file`, unless it has one by now; returns its.
  std::shared_ptr<const FileHandle> insert(HandledFile* file,
                                           std::shared_ptr<const FileHandle> handle);
  void close_down_to(size_t most);

  const std::function<size_t()> limit_;
  std::mutex mutex_;
  std::list<HandledFile*> open_;  // guarded by mutex_; the most recently used first
};

}  // namespace te
