// Power losses in a row: each life of the store begins with what the one before left on the disk.
#include <filesystem>

#include "tests/faults/torture.h"

namespace te::faults {
namespace {

constexpr int64_t kMaxActions = 40;
constexpr int64_t kMaxOperations = 400;  // of the file system; most lives end before
constexpr int64_t kLivesPerStore = 25;

class Lives {
 public:
  explicit Lives(uint64_t seed) : random_(seed) {}

  // Throws Broken, or StoreException where nothing should fail.
  void live_once(Counts* counts) {
    const std::string folder = folder_of(number_);
    if (number_ == 0) std::filesystem::create_directory(folder);
    const auto disk =
        std::make_shared<DiskModel>(folder, scratch_.path() + "/links" + std::to_string(number_));
    const auto faults = std::make_shared<FaultFileSystem>(disk);
    const std::unique_ptr<rocksdb::Env> env = make_env(faults);
    Life life(folder, env.get(), &history_, &next_version_);
    if (number_ == 0) {
      create_folder(folder, faults.get());
      life.open(true);
    }
    const Fault fault{FaultKind::kPowerLoss, static_cast<uint64_t>(random_.between(1, at_most_)),
                      true};
    faults->arm(fault);
    const bool refused = !run(&life, number_ != 0, counts);
    if (!faults->fired()) faults->arm({FaultKind::kPowerLoss, 1, true});  // now, then
    life.close(refused);

    ++number_;
    const bool all = random_.one_in(2);
    disk->lose_power(folder_of(number_),
                     all ? DiskModel::Loss::kEverything : DiskModel::Loss::kSome, &random_);
    std::filesystem::remove_all(folder);
    counts->add("power losses");
    judge(life, counts);
  }

 private:
  std::string folder_of(int number) const {
    return scratch_.path() + "/life" + std::to_string(number);
  }

  // Returns false once a call has failed.
  bool run(Life* life, bool open, Counts* counts) {
    try {
      if (open) life->open(false);
      for (int64_t i = random_.between(1, kMaxActions); i > 0; --i) life->any(&random_);
      return true;
    } catch (const StoreException&) {
      counts->add("in the middle of a call");
      return false;
    }
  }

  void judge(const Life& life, Counts* counts) {
    const std::string folder = folder_of(number_);
    judge_checkpoints(folder, life.checkpoints());
    counts->add("checkpoints found again", static_cast<int64_t>(life.checkpoints().size()));
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().filename() != "db") std::filesystem::remove_all(entry.path());
    }
    const Rows found = rows_in(folder + "/db");
    history_.judge(found);
    history_ = History(found);
  }

  const int64_t at_most_ = kMaxOperations;
  Scratch scratch_;
  stress::Random random_;
  History history_;
  uint64_t next_version_ = 1;
  int number_ = 0;
};

}  // namespace

void lose_power(uint64_t seed, int64_t count, Counts* counts) {
  for (int64_t done = 0; done < count;) {
    const uint64_t store_seed = seed++;
    try {
      Lives lives(store_seed);
      for (int64_t i = 0; i < kLivesPerStore && done < count; ++i, ++done) lives.live_once(counts);
    } catch (const std::exception& error) {
      counts->fail(store_seed, error.what());
      ++done;
    }
  }
}

}  // namespace te::faults
