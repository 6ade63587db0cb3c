// RocksDB options for random point reads and random rewrites of ~512 B incompressible records.
#pragma once

#include <rocksdb/options.h>

#include <cstddef>
#include <cstdint>

namespace tiered_embed {

enum class OpenMode { kCreate, kReadWrite, kReadOnly };

struct StoreOptions {
  size_t record_bytes = 0;
  OpenMode mode = OpenMode::kReadWrite;
  size_t num_read_threads = 32;
  // Bypass the page cache, for reads, flushes and compactions.
  bool direct_io = false;
  // Put the blocks that get() reads into the block cache.
  bool fill_cache = false;
  uint64_t write_buffer_bytes = uint64_t{64} << 20;
  uint64_t block_cache_bytes = uint64_t{32} << 20;
};

rocksdb::Options MakeRocksOptions(const StoreOptions& options);

}  // namespace tiered_embed
