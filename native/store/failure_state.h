// The first failure of a store. RocksDB's threads set it too, through the listener.
//
// Threads: every method locks.
#pragma once

#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/status.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "store/store_error.h"

namespace te {

class FailureState {
 public:
  // Keeps the first failure.
  void set(const rocksdb::Status& status, const std::string& what) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failed_) return;
    kind_ = kind_of(status);
    cause_ = what + ": " + status.ToString();
    failed_.store(true);
  }

  void throw_if_set(const std::string& path) {
    if (!failed_.load()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    reported_ = true;
    throw StoreException(kind_, "store '" + path + "' failed earlier (" + cause_ +
                                    "); close it and reopen from the last checkpoint");
  }

  bool failed() const { return failed_.load(); }

  // Whether a caller has seen the failure.
  bool reported() {
    std::lock_guard<std::mutex> lock(mutex_);
    return reported_;
  }
  void set_reported() {
    std::lock_guard<std::mutex> lock(mutex_);
    reported_ = true;
  }

 private:
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  ErrorKind kind_ = ErrorKind::kStore;  // guarded by mutex_
  std::string cause_;                   // guarded by mutex_
  bool reported_ = false;               // guarded by mutex_
};

// Passes failures of RocksDB's background work on to a FailureState.
class FailureListener : public rocksdb::EventListener {
 public:
  explicit FailureListener(std::shared_ptr<FailureState> failure) : failure_(std::move(failure)) {}

  void OnBackgroundError(rocksdb::BackgroundErrorReason /*reason*/,
                         rocksdb::Status* status) override {
    failure_->set(*status, "background work");
  }

 private:
  const std::shared_ptr<FailureState> failure_;
};

inline rocksdb::Options with_listener(rocksdb::Options options,
                                      std::shared_ptr<FailureState> failure) {
  options.listeners.push_back(std::make_shared<FailureListener>(std::move(failure)));
  return options;
}

}  // namespace te
