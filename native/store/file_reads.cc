#include "store/file_reads.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace te {
namespace {

using rocksdb::FSReadRequest;
using rocksdb::IOStatus;
using rocksdb::Slice;

constexpr size_t kMaxInFlight = 32;  // MultiGet never asks for more blocks at once

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

  // Waits for all reads in flight, and returns how many have ended, at least one. There is no way
  // to give up: the kernel writes into the callers' buffers until the last one has ended.
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

// Fills in a request of which `got` bytes have been read; after an error (negative), or a short
// read, plain reads have the last word.
void complete(const OpenFile& file, FSReadRequest& request, int64_t got) {
  const size_t done = got > 0 ? static_cast<size_t>(got) : 0;
  request.status =
      read_range(file, done, request.offset, request.len, &request.result, request.scratch);
}

void read_direct(const OpenFile& file, FSReadRequest* requests, size_t n) {
  static thread_local AioContext context;
  std::array<iocb, kMaxInFlight> blocks;
  std::array<iocb*, kMaxInFlight> pointers;
  for (size_t i = 0; i < n; ++i) {
    blocks[i] = {};
    blocks[i].aio_data = i;
    blocks[i].aio_lio_opcode = IOCB_CMD_PREAD;
    blocks[i].aio_fildes = static_cast<uint32_t>(file.fd);
    blocks[i].aio_buf = reinterpret_cast<uint64_t>(requests[i].scratch);
    blocks[i].aio_nbytes = requests[i].len;
    blocks[i].aio_offset = static_cast<int64_t>(requests[i].offset);
    pointers[i] = &blocks[i];
  }
  const size_t taken = context.usable() ? context.submit(pointers.data(), n) : 0;
  for (size_t i = taken; i < n; ++i) complete(file, requests[i], 0);

  std::array<io_event, kMaxInFlight> events;
  for (size_t in_flight = taken; in_flight > 0;) {
    const size_t ended = context.reap(events.data(), in_flight);
    in_flight -= ended;
    for (size_t i = 0; i < ended; ++i) complete(file, requests[events[i].data], events[i].res);
  }
}

void read_buffered(const OpenFile& file, FSReadRequest* requests, size_t n) {
  std::array<size_t, kMaxInFlight> done;
  for (size_t i = 0; i < n; ++i) {
    const FSReadRequest& request = requests[i];
    const iovec whole{request.scratch, request.len};
    const ssize_t got =
        ::preadv2(file.fd, &whole, 1, static_cast<off_t>(request.offset), RWF_NOWAIT);
    done[i] = got > 0 ? static_cast<size_t>(got) : 0;
    // Begins to read what is missing. A file system that knows neither call just waits below.
    if (done[i] < request.len) {
      ::posix_fadvise(file.fd, static_cast<off_t>(request.offset + done[i]),
                      static_cast<off_t>(request.len - done[i]), POSIX_FADV_WILLNEED);
    }
  }
  for (size_t i = 0; i < n; ++i) complete(file, requests[i], static_cast<int64_t>(done[i]));
}

}  // namespace

IOStatus read_range(const OpenFile& file, size_t done, uint64_t offset, size_t n, Slice* result,
                    char* scratch) {
  while (done < n) {
    const ssize_t got =
        ::pread(file.fd, scratch + done, n - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      *result = Slice(scratch, 0);
      return IOStatus::IOError("pread " + std::to_string(n) + " bytes from offset " +
                                   std::to_string(offset) + " of " + file.name,
                               std::strerror(errno));
    }
    if (got == 0) break;
    done += static_cast<size_t>(got);
    // The end of the file: what follows is not aligned.
    if (file.direct && done % kPageBytes != 0) break;
  }
  *result = Slice(scratch, done);
  return IOStatus::OK();
}

void read_together(const OpenFile& file, FSReadRequest* requests, size_t n) {
  // For one read alone a plain call is cheaper.
  if (n == 1) return complete(file, requests[0], 0);
  for (size_t begin = 0; begin < n; begin += kMaxInFlight) {
    const size_t count = std::min(kMaxInFlight, n - begin);
    if (file.direct) {
      read_direct(file, requests + begin, count);
    } else {
      read_buffered(file, requests + begin, count);
    }
  }
}

}  // namespace te
