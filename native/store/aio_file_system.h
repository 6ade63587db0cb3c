// Many direct reads in flight from one thread: what RocksDB's own io_uring would give, where it is
// built without.
//
// MultiGet hands the blocks that a batch of keys needs from one file to FSRandomAccessFile::
// MultiRead(), whose default reads them one after another. Here they are submitted together, by
// Linux AIO: it is in every kernel since 2.6, needs no library and no rings, and it is really
// asynchronous for files opened with O_DIRECT, the only ones that it is used for.
#pragma once

#include <rocksdb/env.h>

namespace te {

// The default Env, with overlapped MultiReads from files that are opened for direct reads. One for
// the process, never destroyed. Every method may be called from any thread.
rocksdb::Env* aio_env();

// Whether the kernel gives this process a context; where not, aio_env() reads one after another.
bool is_aio_available();

}  // namespace te
