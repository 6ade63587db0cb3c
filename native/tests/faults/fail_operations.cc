// One operation of the file system goes wrong, each in turn: every call either works or says so,
// and what was acknowledged before is there afterwards, with and without a power loss on top.
#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>

#include "tests/faults/torture.h"

namespace te::faults {
namespace {

constexpr int kMostBroken = 5;  // of one workload and kind of fault

struct Workload {
  const char* name;
  bool filled;  // begins with a store that has rows, some of them in files
  std::function<void(Life*, stress::Random*)> run;
  bool imports = false;
};

void put_many(Life* life, stress::Random* random) {
  for (int i = 0; i < 20; ++i) life->put(random);
}

const Workload kWorkloads[] = {
    {"put and flush", false,
     [](Life* life, stress::Random* random) {
       for (int i = 0; i < 4; ++i) {
         life->put(random);
         life->remove(random);
         life->flush();
       }
     }},
    {"put, flush and compact in the background", false,
     [](Life* life, stress::Random* random) {
       for (int i = 0; i < 4; ++i) put_many(life, random);
       life->compact();
       life->flush();
     }},
    {"put and close", false,
     [](Life* life, stress::Random* random) {
       for (int i = 0; i < 3; ++i) put_many(life, random);
     }},
    {"put, and close once the background has ended", false,
     [](Life* life, stress::Random* random) {
       for (int i = 0; i < 6; ++i) life->put_more(random);
       // Nobody may ask the store meanwhile: it would report a failure.
       std::this_thread::sleep_for(std::chrono::milliseconds(10));
     }},
    {"checkpoint", true,
     [](Life* life, stress::Random* random) {
       life->put(random);
       life->checkpoint();
       life->put(random);
       life->checkpoint();
     }},
    {"read", true,
     [](Life* life, stress::Random* random) {
       for (int i = 0; i < 4; ++i) life->read(random);
       life->read_all();
     }},
    {"import", false, [](Life* life, stress::Random*) { life->import(); }, true},
};

const std::pair<const char*, Fault> kFaults[] = {
    {"error", {FaultKind::kError, 0, false}},
    {"errors from there on", {FaultKind::kError, 0, true}},
    {"no space from there on", {FaultKind::kNoSpace, 0, true}},
    {"short write", {FaultKind::kShortWrite, 0, false}},
};

// A failed import may take the store with it: RocksDB removes a file that its manifest may name
// already. The store has never held a row, so nothing is lost, and opening it tells.
bool opens(const std::string& path) {
  try {
    rows_in(path);
    return true;
  } catch (const StoreException&) {
    return false;
  }
}

// Returns false once the workload ends before its `at`-th operation.
bool run_once(const Workload& workload, Fault fault, uint64_t seed, Counts* counts) {
  const Scratch scratch;
  const std::string folder = scratch.path() + "/live";
  std::filesystem::create_directory(folder);
  const auto disk = std::make_shared<DiskModel>(folder, scratch.path() + "/links");
  const auto faults = std::make_shared<FaultFileSystem>(disk);
  const std::unique_ptr<rocksdb::Env> env = make_env(faults);
  stress::Random random(seed);
  History history;
  uint64_t next_version = 1;
  Life life(folder, env.get(), &history, &next_version);
  create_folder(folder, faults.get());
  life.open(true);
  if (workload.filled) {
    put_many(&life, &random);
    life.flush();
    life.put(&random);
    if (!life.close(false)) throw Broken("a close without a fault failed");
  }
  faults->arm(fault);
  bool refused = false;
  try {
    if (workload.filled) life.open(false);
    workload.run(&life, &random);
  } catch (const StoreException& error) {
    refused = true;
    if (error.kind() != ErrorKind::kStore && error.kind() != ErrorKind::kCorruption) {
      throw Broken(std::string("an error of another kind: ") + error.what());
    }
  }
  const bool fired = faults->fired();
  if (refused && !fired) throw Broken("an error without a fault");
  if (!life.close(refused)) refused = true;
  faults->disarm();
  disk->lose_power(scratch.path() + "/after", DiskModel::Loss::kEverything, &random);

  for (const char* folder_name : {"/after", "/live"}) {
    const std::string left = scratch.path() + folder_name;
    judge_checkpoints(left, life.checkpoints());
    if (refused && workload.imports && !opens(left + "/db")) {
      counts->add("imports that left a store to be made anew");
      continue;
    }
    history.judge(rows_in(left + "/db"));
  }
  if (fired) {
    counts->add("faults");
    counts->add(refused ? "told" : "survived");
  }
  return fired;
}

}  // namespace

void fail_operations(uint64_t seed, int64_t stride, Counts* counts) {
  for (const Workload& workload : kWorkloads) {
    for (const auto& [name, kind] : kFaults) {
      // RocksDB's threads take part in the counting: an end is believed when it came twice.
      int ended = 0;
      int broken = 0;
      for (uint64_t at = 1; ended < 2 && broken < kMostBroken;
           at += static_cast<uint64_t>(stride)) {
        Fault fault = kind;
        fault.at = at;
        // RocksDB 7.8 fails an assertion where it cannot read what it ingests.
        fault.spares_reads = workload.imports;
        try {
          ended = run_once(workload, fault, seed, counts) ? 0 : ended + 1;
        } catch (const std::exception& error) {
          ++broken;
          counts->fail(seed, std::string(workload.name) + ", " + name + " at operation " +
                                 std::to_string(at) + ": " + error.what());
        }
      }
    }
  }
}

}  // namespace te::faults
