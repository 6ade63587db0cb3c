// What the store's torture tests share: a workload, the history of what it did, and the judge.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "store/rocksdb_store.h"
#include "tests/faults/disk_model.h"
#include "tests/faults/fault_file_system.h"
#include "tests/stress.h"

namespace te::faults {

// The store broke a promise; the message says which.
class Broken : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Rows = std::map<int64_t, uint64_t>;  // row -> version of its record

// All writes in order, and how many of them are promised to be durable.
class History {
 public:
  // Begins anew with what a store was found to hold.
  explicit History(Rows start = {}) : start_(std::move(start)) {}

  void add(const std::vector<int64_t>& rows, uint64_t version);  // 0: they are deleted
  void acknowledge() { num_durable_ = writes_.size(); }
  Rows now() const { return after(writes_.size()); }

  // Throws Broken unless `found` is what was there after some prefix of the writes that has all
  // durable ones.
  void judge(const Rows& found) const;

 private:
  struct Write {
    std::vector<int64_t> rows;
    uint64_t version;
  };

  Rows after(size_t num_writes) const;
  static void apply(const Write& write, Rows* rows);

  Rows start_;
  std::vector<Write> writes_;
  size_t num_durable_ = 0;
};

// One life of a store: opened over a file system that may fail, used until that throws.
class Life {
 public:
  // `folder` holds `db`, and gets the checkpoints. `history` outlives it.
  Life(std::string folder, rocksdb::Env* env, History* history, uint64_t* next_version);

  void open(bool create);
  // Throws StoreException, or Broken where the store gives a wrong answer.
  void put(stress::Random* random);
  void put_more(stress::Random* random);  // a fifth of the write buffer
  void remove(stress::Random* random);
  void read(stress::Random* random);
  void flush();
  void compact() { store_->compact(); }
  void checkpoint();
  void read_all();
  void import();                     // into a store that was never written
  void any(stress::Random* random);  // one of the above, import apart
  // False where that failed; the store is gone in any case. A close that works promises that all is
  // durable, unless an error was reported before (`refused`).
  bool close(bool refused);

  // What each acknowledged checkpoint holds, by its name in `folder`.
  const std::map<std::string, Rows>& checkpoints() const { return checkpoints_; }

 private:
  void put_rows(const std::vector<int64_t>& rows);

  const std::string folder_;
  rocksdb::Env* const env_;
  History* const history_;
  uint64_t* const next_version_;
  std::shared_ptr<RocksDbStore> store_;
  std::map<std::string, Rows> checkpoints_;
  uint64_t num_checkpoints_ = 0;
};

// All rows of the store in `path`, after its own verification. Throws StoreException.
Rows rows_in(const std::string& path, rocksdb::Env* env = nullptr);

// Throws Broken unless each is there and holds its rows.
void judge_checkpoints(const std::string& folder, const std::map<std::string, Rows>& checkpoints);

// Creates `folder`/db durably, as StoreDirectory does before a store is opened there.
void create_folder(const std::string& folder, FaultFileSystem* faults);

class Counts {
 public:
  void add(const std::string& name, int64_t n = 1) { counts_[name] += n; }
  void fail(uint64_t seed, const std::string& message);
  bool failed() const { return counts_.count("failures") != 0; }
  void print() const;  // one line of JSON

 private:
  std::map<std::string, int64_t> counts_;
  std::vector<std::string> messages_;
};

// A directory that goes with it.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// `count` power losses at random operations.
void lose_power(uint64_t seed, int64_t count, Counts* counts);

// Every kind of fault at every `stride`-th operation of seven workloads.
void fail_operations(uint64_t seed, int64_t stride, Counts* counts);

}  // namespace te::faults
