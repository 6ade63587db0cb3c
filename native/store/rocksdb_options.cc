#include "store/rocksdb_options.h"

#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/statistics.h>
#include <rocksdb/table.h>

#include <algorithm>
#include <cstdarg>
#include <memory>

#include "store/row_file_system.h"
#include "store/row_keys.h"

namespace te {

namespace {

constexpr int kL0Files = 16;  // sorted runs that gather before they are merged

// RocksDB's own log file: its writer fails an assertion at the second line that a full disk refuses
// (Debian's 7.8 has assertions), which would end the process. Errors come as statuses.
class NoLog : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char* /*format*/, va_list /*arguments*/) override {}
};

// How records lie in blocks.
struct BlockShape {
  size_t block_bytes;
  bool aligned;
};

// A point read fetches one block: the smallest that a device reads whole. Unaligned, such a block
// straddles two pages: measured 7.6 KB read from disk per row instead of 4. But a block that is
// aligned is filled up to the page. Where that would take more than a third of the file, as with
// records of 2 or 4 KB, each record is a block of its own, one after another: a read then touches
// one more page at most.
BlockShape block_shape_of(size_t record_bytes) {
  constexpr size_t kPage = 4096;
  constexpr size_t kBlockExtra = 8 + 5;  // restarts; checksum and type
  const size_t lengths = record_bytes < 128 ? 3 : record_bytes < 16384 ? 4 : 5;
  const size_t entry = kKeyBytes + 8 + lengths + record_bytes;  // 8: sequence number and type
  const size_t per_block = std::max<size_t>(1, (kPage - kBlockExtra) / entry);
  const size_t used = per_block * entry + kBlockExtra;
  const size_t filled = (used + kPage - 1) / kPage * kPage;
  if (filled * 100 <= used * 135) return {kPage, true};
  return {record_bytes, false};
}

void tune_reads(const StoreOptions& options, rocksdb::Options& rocks) {
  rocksdb::BlockBasedTableOptions table;
  // With checksums off, 132 of 194 bit flips were read silently; XXH3 is the cheapest of them.
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  const BlockShape shape = block_shape_of(options.record_bytes);
  table.block_size = shape.block_bytes;
  table.block_align = shape.aligned;
  // Rows that were never stored cost no read. The filter is over whole keys.
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10, false));
  table.whole_key_filtering = true;
  // DDR and HBM above are the cache; this one only helps rows that share a block. Index and
  // filter blocks stay outside of it, so that they are never evicted.
  table.block_cache = rocksdb::NewLRUCache(options.block_cache_bytes);
  table.cache_index_and_filter_blocks = false;
  rocks.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));

  // A read of a missing row is common (first touch), so the last level keeps its filters.
  rocks.optimize_filters_for_hits = false;
  // All table readers stay open: no read waits for an open and an index load.
  rocks.max_open_files = -1;
  rocks.advise_random_on_open = true;
  // The random advice turns the kernel's readahead off for compactions as well; this replaces it.
  rocks.compaction_readahead_size = size_t{2} << 20;
  rocks.env = row_env();
}

void tune_writes(const StoreOptions& options, rocksdb::Options& rocks) {
  rocks.compression = rocksdb::kNoCompression;
  rocks.bottommost_compression = rocksdb::kDisableCompressionOption;
  // Two bounded memtables; more than two together with several flush threads lost data before 7.9.
  rocks.write_buffer_size = options.write_buffer_bytes;
  rocks.max_write_buffer_number = 2;
  rocks.max_background_jobs = 2;

  // Rewrites are spread over the whole key range, so that every merge of L0 rewrites all of the
  // first level: the more gathers in L0 before, and the larger the first level is, the fewer
  // bytes are written. Against 4 files and 256 MiB, as RocksDB has them, this halves them; a Bloom
  // filter keeps the added runs from being read. Universal compaction, 4 runs to a merge, wrote no
  // less when it was given time to finish, and took twice the space
  // (benchmarks/results/store_tuning.json).
  rocks.level0_file_num_compaction_trigger = kL0Files;
  rocks.max_bytes_for_level_base = kL0Files * options.write_buffer_bytes;
  // Where compactions fall behind, writers wait: neither reads nor the disk fill without bound.
  rocks.level0_slowdown_writes_trigger = kL0Files * 3 / 2;
  rocks.level0_stop_writes_trigger = kL0Files * 9 / 4;
  // Keeps nine tenths of the rows in the last level: little space is lost to replaced rows.
  rocks.level_compaction_dynamic_level_bytes = true;
  rocks.manifest_preallocation_size = 64 << 10;  // 4 MB for each of many small stores is much
  rocks.bytes_per_sync = uint64_t{1} << 20;      // write-back in small steps instead of bursts
}

}  // namespace

rocksdb::Options rocks_options_of(const StoreOptions& options) {
  rocksdb::Options rocks;
  if (options.tuning == Tuning::kRows) {
    tune_reads(options, rocks);
    tune_writes(options, rocks);
  }
  if (options.env != nullptr) rocks.env = options.env;
  // What the contract of the store needs, whatever the tuning.
  rocks.create_if_missing = options.mode == OpenMode::kCreate;
  rocks.error_if_exists = options.mode == OpenMode::kCreate;
  rocks.paranoid_checks = true;
  rocks.use_direct_reads = options.direct_io;
  rocks.use_direct_io_for_flush_and_compaction = options.direct_io;
  // Obsolete files are deleted in the background. Not in a read-only DB, which has no background:
  // VerifyChecksum() of 7.8 then fails an assertion (SchedulePurge), and Debian's build has them.
  rocks.avoid_unnecessary_blocking_io = options.mode != OpenMode::kReadOnly;
  // DB::Resume() often leaves writes failing: an error stays, and the caller reopens a checkpoint.
  rocks.max_bgerror_resume_count = 0;
  rocks.statistics = rocksdb::CreateDBStatistics();
  rocks.statistics->set_stats_level(rocksdb::StatsLevel::kExceptHistogramOrTimers);
  rocks.stats_dump_period_sec = 0;
  rocks.stats_persist_period_sec = 0;
  rocks.info_log = std::make_shared<NoLog>();
  return rocks;
}

void start_background_threads(rocksdb::Env* env) {
  for (const rocksdb::Env::Priority priority : {rocksdb::Env::HIGH, rocksdb::Env::LOW}) {
    env->IncBackgroundThreadsIfNeeded(1, priority);
    env->Schedule([](void* /*unused*/) {}, nullptr, priority);
  }
}

}  // namespace te
