#include "store/live_files.h"

#include <rocksdb/metadata.h>

#include <cstdint>
#include <vector>

namespace te {

rocksdb::Status find_live_files(rocksdb::DB* db, rocksdb::Env* env, const std::string& path) {
  // None that is found live is removed before it is looked for.
  rocksdb::Status status = db->DisableFileDeletions();
  if (!status.ok()) return status;
  const std::string lost = "' is gone or was replaced while the store was open";
  std::vector<std::string> names;
  uint64_t manifest_size = 0;
  status = db->GetLiveFiles(names, &manifest_size, /*flush_memtable=*/false);
  for (const std::string& name : names) {
    if (!status.ok()) break;
    if (!env->FileExists(path + name).ok()) status = rocksdb::Status::IOError("'" + name + lost);
  }
  std::vector<rocksdb::LiveFileMetaData> tables;
  db->GetLiveFilesMetaData(&tables);
  for (const rocksdb::LiveFileMetaData& table : tables) {
    if (!status.ok()) break;
    uint64_t size = 0;
    if (!env->GetFileSize(path + table.name, &size).ok() || size != table.size) {
      status = rocksdb::Status::IOError("'" + table.name + lost);
    }
  }
  const rocksdb::Status enabled = db->EnableFileDeletions(/*force=*/false);
  return status.ok() ? enabled : status;
}

}  // namespace te
