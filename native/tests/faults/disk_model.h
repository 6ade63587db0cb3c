// What a disk holds when the power goes: the rule that the torture tests judge the store by.
//
// A file keeps the length that it had at its last fsync; a directory keeps the entries that it had
// at its own last fsync. Whatever came later may be gone, or be there in part: of the changes to
// directories a prefix in the order in which they were made, of a file's new bytes a prefix.
//
// The live tree is on a real file system. The model only keeps one more hard link to every file,
// so that a file that was deleted or replaced can come back.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tests/stress.h"

namespace te::faults {

class DiskModel {
 public:
  // `root` exists; everything in it is on disk already. `links` is a directory for the model's own
  // links, on the same file system and outside of `root`.
  DiskModel(std::string root, std::string links);

  DiskModel(const DiskModel&) = delete;
  DiskModel& operator=(const DiskModel&) = delete;

  // Each is reported after it was done to the live tree. Paths outside of `root` are ignored.
  void created_file(const std::string& path);
  void created_directory(const std::string& path);
  void removed(const std::string& path);
  void linked(const std::string& from, const std::string& to);
  void renamed(const std::string& from, const std::string& to);
  void synced_file(const std::string& path, uint64_t length);
  void synced_directory(const std::string& path);

  enum class Loss {
    kEverything,  // that was not synced
    kSome,        // drawn
  };

  // Builds in `target`, which must not exist, what is left after the power went now.
  void lose_power(const std::string& target, Loss loss, stress::Random* random) const;

 private:
  struct Node {
    bool is_directory = false;
    uint64_t synced_bytes = 0;
    std::map<std::string, int> live;     // a directory's entries, by name
    std::map<std::string, int> durable;  // as of its last fsync
  };
  struct Edit {
    int directory;
    std::string name;
    std::optional<int> node;  // none: the entry is removed
  };
  using Change = std::vector<Edit>;  // happens as a whole, or not

  int add_node(bool is_directory);
  void adopt(int directory, const std::string& path);
  std::optional<int> find(const std::string& path) const;
  std::optional<Edit> edit_of(const std::string& path, std::optional<int> node) const;
  // Directories that nobody reported: made past RocksDB.
  void make_parents(const std::string& path);
  void make(const std::vector<std::optional<Edit>>& edits);
  std::string link_of(int node) const { return links_ + "/" + std::to_string(node); }

  const std::string root_;
  const std::string links_;
  mutable std::mutex mutex_;
  std::vector<Node> nodes_;      // guarded by mutex_; the first is the root
  std::vector<Change> pending_;  // guarded by mutex_; not synced yet, in order
};

}  // namespace te::faults
