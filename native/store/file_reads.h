// Many reads of one file in flight from one thread: what RocksDB's own io_uring would give, where
// it is built without.
//
// Direct reads are submitted together by Linux AIO: it is in every kernel since 2.6, needs no
// library and no rings, and it is really asynchronous for files opened with O_DIRECT. Of buffered
// reads, those that are not in the page cache are asked for together (POSIX_FADV_WILLNEED) and then
// read one after another.
//
// Threads: all functions may be called from any thread.
#pragma once

#include <rocksdb/file_system.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace te {

// Direct reads use whole pages, although the device would take less: a buffer over a page's end is
// two segments to the block layer, and virtual disks may serve each by itself (measured: 69 k
// reads/s instead of 91 k).
constexpr size_t kPageBytes = 4096;

// An open file; not owned.
struct OpenFile {
  const std::string& name;  // for messages
  int fd;
  bool direct;  // opened with O_DIRECT
};

// Reads [offset, offset + n) into scratch, whose first `done` bytes are there already; the result
// is shorter only at the end of the file.
rocksdb::IOStatus read_range(const OpenFile& file, size_t done, uint64_t offset, size_t n,
                             rocksdb::Slice* result, char* scratch);

// Fills in every request, its status included.
void read_together(const OpenFile& file, rocksdb::FSReadRequest* requests, size_t n);

}  // namespace te
