// The files of a store: reads of rows that overlap (see file_reads.h), and a bound on the files
// that are open (see file_handles.h and written_files.h).
//
// MultiGet hands the blocks that a batch of keys needs from one file to FSRandomAccessFile::
// MultiRead(), whose default reads them one after another.
#pragma once

#include <rocksdb/env.h>

namespace te {

// The default Env, with these. One for the process, never destroyed. Every method
// may be called from any thread.
rocksdb::Env* row_env();

}  // namespace te
