// Drives the native parts from several threads at once and checks every result; made to be built
// with a sanitizer. `stress [--seed N] [--seconds S] [part...]`: S seconds for each part, all parts
// by default. Exit status: 0 all right, 1 a mismatch, 2 bad arguments, 3 stuck.
#include "tests/stress.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace te::stress {
namespace {

struct Part {
  const char* name;
  void (*run)(const Run&);
};

constexpr Part kParts[] = {
    {"memory", stress_memory},
    {"hash", stress_hash},
    {"write_buffer", stress_write_buffer},
    {"thread_pool", stress_thread_pool},
    {"reader_pool", stress_reader_pool},
    {"planner", stress_planner},
    {"pipeline", stress_pipeline},
#ifdef TE_STRESS_ROCKSDB
    {"store", stress_store},
#endif
};

constexpr unsigned kStuckAfterSeconds = 120;  // beyond a part's own time

std::atomic<const char*> current_part{"none"};
std::atomic<uint64_t> current_seed{0};

void print_stuck(int) {
  constexpr char kMessage[] = "stress: a round does not end\n";
  (void)!write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  _exit(3);
}

// An exception that nobody expects is a finding like others.
[[noreturn]] void fail_on_exception() {
  try {
    if (const std::exception_ptr current = std::current_exception()) {
      std::rethrow_exception(current);
    }
  } catch (const std::exception& error) {
    fail("%s", error.what());
  } catch (...) {
  }
  fail("terminated");
}

[[noreturn]] void usage() {
  std::fprintf(stderr, "usage: stress [--seed N] [--seconds S] [part...]\nparts:");
  for (const Part& part : kParts) std::fprintf(stderr, " %s", part.name);
  std::fprintf(stderr, "\n");
  std::exit(2);
}

const Part& part_named(const char* name) {
  for (const Part& part : kParts) {
    if (std::strcmp(part.name, name) == 0) return part;
  }
  usage();
}

void run_part(const Part& part, const Run& run) {
  current_part = part.name;
  alarm(kStuckAfterSeconds + static_cast<unsigned>(run.seconds));
  const auto start = std::chrono::steady_clock::now();
  part.run(run);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  alarm(0);
  std::printf("%-12s seeds %llu to %llu, %.1f s\n", part.name,
              static_cast<unsigned long long>(run.seed),
              static_cast<unsigned long long>(current_seed.load()), took.count());
  std::fflush(stdout);
}

}  // namespace

void fail(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "stress: %s (seed %llu): %s\n", current_part.load(),
               static_cast<unsigned long long>(current_seed.load()), message);
  // Other threads still run: nothing may be destroyed.
  std::_Exit(1);
}

Rounds::Rounds(const Run& run)
    : first_seed_(run.seed),
      end_(std::chrono::steady_clock::now() +
           std::chrono::duration_cast<std::chrono::steady_clock::duration>(
               std::chrono::duration<double>(run.seconds))) {}

bool Rounds::next() {
  if (num_begun_ > 0 && std::chrono::steady_clock::now() >= end_) return false;
  ++num_begun_;
  current_seed = seed();
  return true;
}

}  // namespace te::stress

int main(int argc, char** argv) {
  using namespace te::stress;
  Run run{std::random_device{}(), 5.0};
  std::vector<const Part*> parts;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--seed" && i + 1 < argc) {
      run.seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--seconds" && i + 1 < argc) {
      run.seconds = std::strtod(argv[++i], nullptr);
    } else {
      parts.push_back(&part_named(argv[i]));
    }
  }
  if (parts.empty()) {
    for (const Part& part : kParts) parts.push_back(&part);
  }
  std::printf("stress --seed %llu --seconds %g\n", static_cast<unsigned long long>(run.seed),
              run.seconds);
  std::fflush(stdout);
  std::set_terminate(fail_on_exception);
  signal(SIGALRM, print_stuck);
  for (const Part* part : parts) run_part(*part, run);
  return 0;
}
