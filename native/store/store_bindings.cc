// tiered_embed._rocksdb: checks shapes, releases the GIL around all work, and maps StoreException
// to the classes of tiered_embed.errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "store/file_handles.h"
#include "store/rocksdb_store.h"
#include "store/sst_importer.h"
#include "store/store_error.h"

namespace nb = nanobind;

namespace te {
namespace {

using InBytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutFlags = nb::ndarray<bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename Array>
void check_columns(const char* name, const Array& array, size_t rows, size_t columns) {
  if (array.shape(0) == rows && array.shape(1) == columns) return;
  throw StoreException(ErrorKind::kConfig,
                       std::string(name) + " has shape (" + std::to_string(array.shape(0)) + ", " +
                           std::to_string(array.shape(1)) + "), not (" + std::to_string(rows) +
                           ", " + std::to_string(columns) + ")");
}

OpenMode mode_of(const std::string& mode) {
  if (mode == "create") return OpenMode::kCreate;
  if (mode == "read_write") return OpenMode::kReadWrite;
  if (mode == "read_only") return OpenMode::kReadOnly;
  throw StoreException(ErrorKind::kConfig,
                       "mode is '" + mode + "', not 'create', 'read_write' or 'read_only'");
}

Tuning tuning_of(const std::string& tuning) {
  if (tuning == "rows") return Tuning::kRows;
  if (tuning == "rocksdb_default") return Tuning::kRocksDbDefault;
  throw StoreException(ErrorKind::kConfig,
                       "tuning is '" + tuning + "', not 'rows' or 'rocksdb_default'");
}

std::optional<std::string> key_bound(const char* name, const std::optional<nb::bytes>& key) {
  if (!key) return std::nullopt;
  if (key->size() != kKeyBytes) {
    throw StoreException(ErrorKind::kConfig, std::string(name) + " has " +
                                                 std::to_string(key->size()) + " bytes, not " +
                                                 std::to_string(kKeyBytes));
  }
  return std::string(key->c_str(), key->size());
}

// What Python gets of `shared`. Dropping it may close files and wait for RocksDB's threads, which
// is done while other Python threads run.
template <typename T>
std::shared_ptr<T> for_python(std::shared_ptr<T> shared) {
  T* const object = shared.get();
  return std::shared_ptr<T>(object, [shared = std::move(shared)](T*) mutable {
    if (PyGILState_Check()) {
      nb::gil_scoped_release release;
      shared.reset();
    }
  });
}

const char* python_error_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kConfig:
      return "ConfigError";
    case ErrorKind::kCorruption:
      return "CorruptionError";
    case ErrorKind::kClosed:
      return "ClosedError";
    case ErrorKind::kStore:
      break;
  }
  return "StoreError";
}

void translate_store_exception(const std::exception_ptr& pointer, void* /*payload*/) {
  try {
    std::rethrow_exception(pointer);
  } catch (const StoreException& error) {
    const nb::object type =
        nb::module_::import_("tiered_embed.errors").attr(python_error_name(error.kind()));
    PyErr_SetString(type.ptr(), error.what());
  }
}

}  // namespace
}  // namespace te

NB_MODULE(_rocksdb, m) {
  using namespace te;
  // A store that is never closed, or is inherited through fork, is no bug of the bindings.
  nb::set_leak_warnings(false);
  nb::register_exception_translator(translate_store_exception);
  m.attr("KEY_BYTES") = kKeyBytes;
  m.def("num_read_handles", &FileHandles::num_open, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<Scanner>(m, "Scanner")
      .def(
          "next",
          [](Scanner& self, const OutBytes& keys, const OutBytes& records) {
            check_columns("keys", keys, keys.shape(0), kKeyBytes);
            check_columns("records", records, keys.shape(0), self.record_bytes());
            uint8_t* key_data = keys.data();
            uint8_t* record_data = records.data();
            const size_t max_rows = keys.shape(0);
            nb::gil_scoped_release release;
            return self.next(key_data, record_data, max_rows);
          },
          nb::arg("keys").noconvert(), nb::arg("records").noconvert())
      .def("close", &Scanner::close, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<SstImporter>(m, "SstImporter")
      .def(
          "add",
          [](SstImporter& self, const InBytes& keys, const InBytes& records) {
            check_columns("keys", keys, keys.shape(0), kKeyBytes);
            check_columns("records", records, keys.shape(0), self.record_bytes());
            const uint8_t* key_data = keys.data();
            const uint8_t* record_data = records.data();
            const size_t n = keys.shape(0);
            nb::gil_scoped_release release;
            self.add(key_data, record_data, n);
          },
          nb::arg("keys").noconvert(), nb::arg("records").noconvert())
      .def("finish", &SstImporter::finish, nb::call_guard<nb::gil_scoped_release>())
      .def("abort", &SstImporter::abort, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<RocksDbStore>(m, "RocksDbStore")
      .def_static(
          "open",
          [](const std::string& path, size_t record_bytes, const std::string& mode,
             const std::string& tuning, std::optional<size_t> num_read_threads, bool direct_io,
             bool fill_cache, uint64_t write_buffer_bytes, uint64_t block_cache_bytes) {
            StoreOptions options;
            options.record_bytes = record_bytes;
            options.mode = mode_of(mode);
            options.tuning = tuning_of(tuning);
            options.num_read_threads = num_read_threads;
            options.direct_io = direct_io;
            options.fill_cache = fill_cache;
            options.write_buffer_bytes = write_buffer_bytes;
            options.block_cache_bytes = block_cache_bytes;
            nb::gil_scoped_release release;
            return for_python(RocksDbStore::open(path, options));
          },
          nb::arg("path"), nb::arg("record_bytes"), nb::arg("mode"), nb::kw_only(),
          nb::arg("tuning"), nb::arg("num_read_threads").none(), nb::arg("direct_io"),
          nb::arg("fill_cache"), nb::arg("write_buffer_bytes"), nb::arg("block_cache_bytes"))
      .def(
          "get",
          [](RocksDbStore& self, const InBytes& keys, const OutBytes& out, const OutFlags& found) {
            const size_t n = keys.shape(0);
            check_columns("keys", keys, n, kKeyBytes);
            check_columns("out", out, n, self.record_bytes());
            if (found.shape(0) != n) {
              throw StoreException(ErrorKind::kConfig, "found and keys differ in length");
            }
            const uint8_t* key_data = keys.data();
            uint8_t* out_data = out.data();
            bool* found_data = found.data();
            nb::gil_scoped_release release;
            self.get(key_data, n, out_data, found_data);
          },
          nb::arg("keys").noconvert(), nb::arg("out").noconvert(), nb::arg("found").noconvert())
      .def(
          "put",
          [](RocksDbStore& self, const InBytes& keys, const InBytes& records) {
            const size_t n = keys.shape(0);
            check_columns("keys", keys, n, kKeyBytes);
            check_columns("records", records, n, self.record_bytes());
            const uint8_t* key_data = keys.data();
            const uint8_t* record_data = records.data();
            nb::gil_scoped_release release;
            self.put(key_data, record_data, n);
          },
          nb::arg("keys").noconvert(), nb::arg("records").noconvert())
      .def(
          "delete",
          [](RocksDbStore& self, const InBytes& keys) {
            const size_t n = keys.shape(0);
            check_columns("keys", keys, n, kKeyBytes);
            const uint8_t* key_data = keys.data();
            nb::gil_scoped_release release;
            self.remove(key_data, n);
          },
          nb::arg("keys").noconvert())
      .def(
          "scan",
          [](RocksDbStore& self, const std::optional<nb::bytes>& start,
             const std::optional<nb::bytes>& stop) {
            const std::optional<std::string> start_key = key_bound("start", start);
            const std::optional<std::string> stop_key = key_bound("stop", stop);
            nb::gil_scoped_release release;
            return for_python(self.scan(start_key, stop_key));
          },
          nb::arg("start").none(), nb::arg("stop").none())
      .def(
          "importer",
          [](const std::shared_ptr<RocksDbStore>& self, const std::string& scratch_dir) {
            nb::gil_scoped_release release;
            return for_python(std::make_shared<SstImporter>(self, scratch_dir));
          },
          nb::arg("scratch_dir"))
      .def("flush", &RocksDbStore::flush, nb::call_guard<nb::gil_scoped_release>())
      .def("compact", &RocksDbStore::compact, nb::call_guard<nb::gil_scoped_release>())
      .def("checkpoint", &RocksDbStore::checkpoint, nb::arg("dir"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("verify", &RocksDbStore::verify, nb::call_guard<nb::gil_scoped_release>())
      .def("stats", &RocksDbStore::stats, nb::call_guard<nb::gil_scoped_release>())
      .def("close", &RocksDbStore::close, nb::call_guard<nb::gil_scoped_release>())
      .def("memory_bytes", &RocksDbStore::memory_bytes, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("record_bytes", &RocksDbStore::record_bytes);
}
