// The one exception of the store, and the one place where a rocksdb::Status becomes it.
#pragma once

#include <rocksdb/status.h>

#include <stdexcept>
#include <string>

namespace te {

enum class ErrorKind {
  kConfig,      // an argument that cannot work
  kStore,       // I/O failed, or the store cannot be opened
  kCorruption,  // stored bytes do not match their checksum or format
  kClosed,      // used after close, or in another process
};

class StoreException : public std::runtime_error {
 public:
  StoreException(ErrorKind kind, const std::string& message)
      : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

inline ErrorKind kind_of(const rocksdb::Status& status) {
  return status.IsCorruption() ? ErrorKind::kCorruption : ErrorKind::kStore;
}

// Throws StoreException unless `status` is ok. `what` says what was being done, to which path.
inline void throw_if_error(const rocksdb::Status& status, const std::string& what) {
  if (!status.ok()) throw StoreException(kind_of(status), what + ": " + status.ToString());
}

}  // namespace te
