// RocksDB options for random point reads and random rewrites of ~512 B incompressible records.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/options.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace te {

enum class OpenMode { kCreate, kReadWrite, kReadOnly };

enum class Tuning {
  kRows,            // for random reads and rewrites of rows; measured by benchmarks/store
  kRocksDbDefault,  // rocksdb::Options() as they come, to compare with
};

struct StoreOptions {
  size_t record_bytes = 0;
  OpenMode mode = OpenMode::kReadWrite;
  Tuning tuning = Tuning::kRows;
  // Threads of ReaderPool::of_process() that a get() may use besides the caller's; none given: all.
  std::optional<size_t> num_read_threads;
  // Bypass the page cache, for reads, flushes and compactions.
  bool direct_io = false;
  // Put the blocks that get() reads into the block cache.
  bool fill_cache = false;
  // With the default tuning these two are RocksDB's.
  uint64_t write_buffer_bytes = uint64_t{64} << 20;
  uint64_t block_cache_bytes = uint64_t{32} << 20;
  // The files below, not owned; none given: the operating system's.
  rocksdb::Env* env = nullptr;
};

rocksdb::Options rocks_options_of(const StoreOptions& options);

// Starts the threads for flushes and merges, which otherwise begin with the first of these jobs:
// where the process may have no thread then, RocksDB ends it.
void start_background_threads(rocksdb::Env* env);

}  // namespace te
