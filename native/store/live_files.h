// Whether the files that an open RocksDB uses are still there.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/env.h>

#include <string>

namespace te {

// An IOError that names the first one that is gone from the directory `path`, or has another size
// than RocksDB has written.
rocksdb::Status find_live_files(rocksdb::DB* db, rocksdb::Env* env, const std::string& path);

}  // namespace te
