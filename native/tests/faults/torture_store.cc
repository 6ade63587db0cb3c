// Power losses and failing file operations under RocksDbStore, judged against a history of what was
// acknowledged. `torture_store power --count N [--seed S]` or `torture_store errors [--stride N]
// [--seed S]`. Prints one line of JSON. Exit status: 0 all right, 1 a broken promise, 2 bad
// arguments.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "tests/faults/torture.h"

namespace te::faults {
namespace {

constexpr size_t kMaxMessages = 10;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c >= ' ' ? c : ' ';
  }
  return out + '"';
}

[[noreturn]] void usage() {
  std::fprintf(stderr, "usage: torture_store power|errors [--count N] [--stride N] [--seed S]\n");
  std::exit(2);
}

}  // namespace

void Counts::fail(uint64_t seed, const std::string& message) {
  add("failures");
  if (messages_.size() < kMaxMessages) {
    messages_.push_back("seed " + std::to_string(seed) + ": " + message);
  }
}

void Counts::print() const {
  std::string line = "{";
  for (const auto& [name, count] : counts_) {
    line += quoted(name) + ": " + std::to_string(count) + ", ";
  }
  line += "\"messages\": [";
  for (size_t i = 0; i < messages_.size(); ++i) {
    line += (i == 0 ? "" : ", ") + quoted(messages_[i]);
  }
  std::printf("%s]}\n", line.c_str());
}

}  // namespace te::faults

int main(int argc, char** argv) {
  using namespace te::faults;
  if (argc < 2) usage();
  const std::string what = argv[1];
  uint64_t seed = std::random_device{}();
  int64_t count = 100;
  int64_t stride = 1;
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const long long value = std::strtoll(argv[i + 1], nullptr, 10);
    if (name == "--seed") {
      seed = static_cast<uint64_t>(value);
    } else if (name == "--count") {
      count = value;
    } else if (name == "--stride" && value > 0) {
      stride = value;
    } else {
      usage();
    }
  }
  Counts counts;
  if (what == "power") {
    lose_power(seed, count, &counts);
  } else if (what == "errors") {
    fail_operations(seed, stride, &counts);
  } else {
    usage();
  }
  counts.print();
  return counts.failed() ? 1 : 0;
}
