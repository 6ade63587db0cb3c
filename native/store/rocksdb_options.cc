#include "rocksdb_options.h"

#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/statistics.h>
#include <rocksdb/table.h>

namespace tiered_embed {

rocksdb::Options MakeRocksOptions(const StoreOptions& options) {
  rocksdb::BlockBasedTableOptions table;
  // With checksums off, 132 of 194 bit flips were read silently; XXH3 is the cheapest of them.
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  // A point read fetches one block: the smallest that a device reads whole.
  table.block_size = 4096;
  // Unaligned, a block straddles two pages: measured 7.6 KB read from disk per row instead of 4.
  table.block_align = true;
  // Rows that were never stored cost no read. The filter is over whole keys.
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10, false));
  table.whole_key_filtering = true;
  // DDR and HBM above are the cache; this one only helps rows that share a block. Index and
  // filter blocks stay outside of it, so that they are never evicted.
  table.block_cache = rocksdb::NewLRUCache(options.block_cache_bytes);
  table.cache_index_and_filter_blocks = false;

  rocksdb::Options rocks;
  rocks.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  rocks.create_if_missing = options.mode == OpenMode::kCreate;
  rocks.error_if_exists = options.mode == OpenMode::kCreate;
  rocks.paranoid_checks = true;
  rocks.compression = rocksdb::kNoCompression;
  rocks.bottommost_compression = rocksdb::kDisableCompressionOption;

  // Two bounded memtables; more than two together with several flush threads lost data before 7.9.
  rocks.write_buffer_size = options.write_buffer_bytes;
  rocks.max_write_buffer_number = 2;
  rocks.max_background_jobs = 2;
  rocks.level_compaction_dynamic_level_bytes = true;
  // A read of a missing row is common (first touch), so the last level keeps its filters.
  rocks.optimize_filters_for_hits = false;

  // All table readers stay open: no read waits for an open and an index load.
  rocks.max_open_files = -1;
  // Obsolete files are deleted in the background. Not in a read-only DB, which has no background:
  // VerifyChecksum() of 7.8 then fails an assertion (SchedulePurge), and Debian's build has them.
  rocks.avoid_unnecessary_blocking_io = options.mode != OpenMode::kReadOnly;
  rocks.advise_random_on_open = true;
  // The random advice turns the kernel's readahead off for compactions as well; this replaces it.
  rocks.compaction_readahead_size = size_t{2} << 20;
  rocks.bytes_per_sync = uint64_t{1} << 20;  // write-back in small steps instead of bursts
  rocks.use_direct_reads = options.direct_io;
  rocks.use_direct_io_for_flush_and_compaction = options.direct_io;

  // DB::Resume() often leaves writes failing: an error stays, and the caller reopens a checkpoint.
  rocks.max_bgerror_resume_count = 0;

  rocks.statistics = rocksdb::CreateDBStatistics();
  rocks.statistics->set_stats_level(rocksdb::StatsLevel::kExceptHistogramOrTimers);
  rocks.stats_dump_period_sec = 0;
  rocks.stats_persist_period_sec = 0;
  rocks.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  rocks.keep_log_file_num = 2;
  return rocks;
}

}  // namespace tiered_embed
