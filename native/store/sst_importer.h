// Bulk import into a store that has never been written: sorted rows become SST files directly,
// with no memtable and no compaction, and are taken over in one step.
#pragma once

#include <rocksdb/sst_file_writer.h>

#include <memory>
#include <string>
#include <vector>

#include "store/rocksdb_store.h"

namespace te {

class SstImporter {
 public:
  // Writes its files into `scratch_dir`, which it creates and which must be on the file system of
  // the store. Throws kConfig unless the store has never held a record.
  SstImporter(std::shared_ptr<RocksDbStore> store, std::string scratch_dir);

  // Without finish() nothing has been imported, and the files are removed.
  ~SstImporter();

  SstImporter(const SstImporter&) = delete;
  SstImporter& operator=(const SstImporter&) = delete;

  // REQUIRES: keys ascend strictly, within a call and from call to call; else throws kConfig.
  void add(const uint8_t* keys, const uint8_t* records, size_t n);

  // Takes all rows into the store, or none. REQUIRES: nobody has written to the store meanwhile.
  void finish();

  // Gives up; a second call, or one after finish(), does nothing.
  void abort();

  size_t record_bytes() const { return store_->record_bytes(); }

 private:
  void require_usable() const;
  void finish_file();

  const std::shared_ptr<RocksDbStore> store_;
  const std::string scratch_dir_;
  std::unique_ptr<rocksdb::SstFileWriter> writer_;  // null between files
  std::vector<std::string> files_;
  std::string last_key_;
  bool done_ = false;
};

}  // namespace te
