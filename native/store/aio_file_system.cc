#include "store/aio_file_system.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <rocksdb/file_system.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace te {
namespace {

using rocksdb::FileOptions;
using rocksdb::FSReadRequest;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

constexpr size_t kMaxInFlight = 32;  // MultiGet never asks for more blocks at once
constexpr size_t kPageBytes = 4096;

// One thread's context. Where the kernel refuses one (a sandbox, fs.aio-max-nr), `usable` is
// false, and reads are made one after another.
class AioContext {
 public:
  AioContext() : usable_(::syscall(SYS_io_setup, kMaxInFlight, &context_) == 0) {}
  ~AioContext() {
    if (usable_) ::syscall(SYS_io_destroy, context_);
  }
  AioContext(const AioContext&) = delete;
  AioContext& operator=(const AioContext&) = delete;

  bool usable() const { return usable_; }

  // Returns how many were taken, from the front; 0 when the kernel takes none.
  size_t submit(iocb** blocks, size_t n) {
    size_t taken = 0;
    while (taken < n) {
      const long more = ::syscall(SYS_io_submit, context_, n - taken, blocks + taken);
      if (more > 0) {
        taken += static_cast<size_t>(more);
      } else if (more == 0 || errno != EINTR) {
        break;
      }
    }
    return taken;
  }

  // Waits for at least one of the reads in flight, and returns how many have ended. There is no
  // way to give up: the kernel writes into the callers' buffers until the last one has ended.
  size_t reap(io_event* events, size_t in_flight) {
    while (true) {
      const long ended =
          ::syscall(SYS_io_getevents, context_, in_flight, in_flight, events, nullptr);
      if (ended > 0) return static_cast<size_t>(ended);
    }
  }

 private:
  aio_context_t context_ = 0;
  const bool usable_;
};

class AioFile : public rocksdb::FSRandomAccessFile {
 public:
  // Takes over `fd`.
  AioFile(std::string name, int fd) : name_(std::move(name)), fd_(fd) {}
  ~AioFile() override { ::close(fd_); }

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& /*options*/, Slice* result,
                char* scratch, IODebugContext* /*debug*/) const override {
    return read_from(0, offset, n, result, scratch);
  }

  IOStatus MultiRead(FSReadRequest* requests, size_t num_requests, const IOOptions& /*options*/,
                     IODebugContext* /*debug*/) override {
    static thread_local AioContext context;
    for (size_t begin = 0; begin < num_requests; begin += kMaxInFlight) {
      const size_t count = std::min(kMaxInFlight, num_requests - begin);
      read_together(context, requests + begin, count);
    }
    return IOStatus::OK();
  }

  bool use_direct_io() const override { return true; }
  // Whole pages, although the device would take less: a buffer over a page's end is two segments
  // to the block layer, and virtual disks may serve each by itself (measured: 69 k reads/s instead
  // of 91 k).
  size_t GetRequiredBufferAlignment() const override { return kPageBytes; }

 private:
  void read_together(AioContext& context, FSReadRequest* requests, size_t n) const {
    std::array<iocb, kMaxInFlight> blocks;
    std::array<iocb*, kMaxInFlight> pointers;
    for (size_t i = 0; i < n; ++i) {
      blocks[i] = {};
      blocks[i].aio_data = i;
      blocks[i].aio_lio_opcode = IOCB_CMD_PREAD;
      blocks[i].aio_fildes = static_cast<uint32_t>(fd_);
      blocks[i].aio_buf = reinterpret_cast<uint64_t>(requests[i].scratch);
      blocks[i].aio_nbytes = requests[i].len;
      blocks[i].aio_offset = static_cast<int64_t>(requests[i].offset);
      pointers[i] = &blocks[i];
    }
    // For one read alone a plain call is cheaper.
    const size_t taken = n > 1 && context.usable() ? context.submit(pointers.data(), n) : 0;
    for (size_t i = taken; i < n; ++i) complete(requests[i], 0);

    std::array<io_event, kMaxInFlight> events;
    for (size_t in_flight = taken; in_flight > 0;) {
      const size_t ended = context.reap(events.data(), in_flight);
      in_flight -= ended;
      for (size_t i = 0; i < ended; ++i) complete(requests[events[i].data], events[i].res);
    }
  }

  // Fills in a request of which `got` bytes have been read; after an error (negative), or a short
  // read, plain reads have the last word.
  void complete(FSReadRequest& request, int64_t got) const {
    const size_t done = got > 0 ? static_cast<size_t>(got) : 0;
    request.status = read_from(done, request.offset, request.len, &request.result, request.scratch);
  }

  // Reads [offset, offset + n) into scratch, whose first `done` bytes are there already; the result
  // is shorter only at the end of the file.
  IOStatus read_from(size_t done, uint64_t offset, size_t n, Slice* result, char* scratch) const {
    while (done < n) {
      const ssize_t got = ::pread(fd_, scratch + done, n - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        *result = Slice(scratch, 0);
        return IOStatus::IOError("pread " + std::to_string(n) + " bytes from offset " +
                                     std::to_string(offset) + " of " + name_,
                                 std::strerror(errno));
      }
      if (got == 0) break;
      done += static_cast<size_t>(got);
      if (done % kPageBytes != 0) break;  // the end of the file: what follows is not aligned
    }
    *result = Slice(scratch, done);
    return IOStatus::OK();
  }

  const std::string name_;
  const int fd_;
};

class AioFileSystem : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;

  const char* Name() const override { return "TieredEmbedAio"; }

  IOStatus NewRandomAccessFile(const std::string& name, const FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               IODebugContext* debug) override {
    const IOStatus status = target()->NewRandomAccessFile(name, options, result, debug);
    if (!status.ok() || !options.use_direct_reads) return status;
    if ((*result)->GetRequiredBufferAlignment() > kPageBytes) return status;
    // RocksDB's own file does not tell its descriptor; it is closed when ours takes its place.
    const int fd = ::open(name.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd >= 0) *result = std::make_unique<AioFile>(name, fd);
    return status;
  }
};

}  // namespace

bool is_aio_available() { return AioContext().usable(); }

rocksdb::Env* aio_env() {
  // RocksDB's threads may use it as long as the process lives.
  static rocksdb::Env* const env =
      rocksdb::NewCompositeEnv(std::make_shared<AioFileSystem>(rocksdb::FileSystem::Default()))
          .release();
  return env;
}

}  // namespace te
