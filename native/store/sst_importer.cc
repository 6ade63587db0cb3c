#include "store/sst_importer.h"

#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

namespace te {
namespace {

// Large enough that a terabyte is a few thousand files, small enough for a compaction to rewrite.
constexpr uint64_t kFileBytes = uint64_t{256} << 20;

}  // namespace

SstImporter::SstImporter(std::shared_ptr<RocksDbStore> store, std::string scratch_dir)
    : store_(std::move(store)), scratch_dir_(std::move(scratch_dir)) {
  {
    RocksDbStore::SharedLock lock = store_->enter();
    store_->require_writable();
    store_->require_never_written();
  }
  std::error_code error;
  std::filesystem::remove_all(scratch_dir_, error);  // left by a killed import
  std::filesystem::create_directories(scratch_dir_, error);
  if (error) {
    throw StoreException(ErrorKind::kStore,
                         "cannot create '" + scratch_dir_ + "': " + error.message());
  }
}

SstImporter::~SstImporter() { abort(); }

void SstImporter::abort() {
  if (done_) return;
  done_ = true;
  if (!store_->is_own_process()) {
    (void)writer_.release();  // the parent's, and so are the files
    return;
  }
  writer_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(scratch_dir_, ignored);
}

void SstImporter::require_usable() const {
  if (done_) throw StoreException(ErrorKind::kClosed, "this import has finished or was aborted");
}

void SstImporter::finish_file() {
  if (writer_ == nullptr) return;
  const rocksdb::Status status = writer_->Finish();
  writer_.reset();
  throw_if_error(status, "import: cannot finish '" + files_.back() + "'");
}

void SstImporter::add(const uint8_t* keys, const uint8_t* records, size_t n) {
  RocksDbStore::SharedLock lock = store_->enter();
  require_usable();
  const size_t record_bytes = store_->record_bytes();
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* key = keys + i * kKeyBytes;
    if (!last_key_.empty() && std::memcmp(last_key_.data(), key, kKeyBytes) >= 0) {
      throw StoreException(ErrorKind::kConfig, "import: keys must ascend strictly; row " +
                                                   std::to_string(i) + " of this chunk does not");
    }
    last_key_.assign(reinterpret_cast<const char*>(key), kKeyBytes);
    if (writer_ == nullptr) {
      files_.push_back(scratch_dir_ + "/" + std::to_string(files_.size()) + ".sst");
      writer_ = std::make_unique<rocksdb::SstFileWriter>(
          rocksdb::EnvOptions(store_->rocks_options_), store_->rocks_options_);
      throw_if_error(writer_->Open(files_.back()), "import: cannot open '" + files_.back() + "'");
    }
    const rocksdb::Slice record(reinterpret_cast<const char*>(records + i * record_bytes),
                                record_bytes);
    throw_if_error(writer_->Put(last_key_, record), "import: cannot write '" + files_.back() + "'");
    if (writer_->FileSize() >= kFileBytes) finish_file();
  }
}

void SstImporter::finish() {
  RocksDbStore::SharedLock lock = store_->enter();
  require_usable();
  finish_file();
  store_->require_never_written();
  if (!files_.empty()) store_->ingest_files(files_);
  abort();  // drops the scratch directory; the store has its own links
}

}  // namespace te
