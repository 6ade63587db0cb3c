// The two thread pools, called from several threads at once: every block runs once, and what it
// wrote is the caller's to read when the call returns.
#include <stdexcept>
#include <string>

#include "core/thread_pool.h"
#include "store/reader_pool.h"
#include "tests/stress.h"

namespace te::stress {
namespace {

constexpr int kNumCallers = 3;
constexpr int kCallsPerRound = 200;

int64_t result_of(int64_t block, int64_t call) { return block * 1000003 + call; }

// `loop(n, fn)` calls fn(block) for every block below n. Plain memory on purpose: the pool alone
// orders who writes and who reads.
template <typename Loop>
void call_once(int64_t num_blocks, int64_t call, const Loop& loop) {
  std::vector<int64_t> results(static_cast<size_t>(num_blocks), 0);
  loop(num_blocks,
       [&](int64_t block) { results[static_cast<size_t>(block)] += result_of(block, call); });
  for (int64_t b = 0; b < num_blocks; ++b) {
    TE_EXPECT(results[static_cast<size_t>(b)] == result_of(b, call),
              "block %lld of %lld did not run once", static_cast<long long>(b),
              static_cast<long long>(num_blocks));
  }
}

void call_and_throw(int64_t num_blocks, int num_threads, int64_t thrower) {
  try {
    parallel_for(num_blocks, num_threads, [thrower](int64_t block) {
      if (block == thrower) throw std::runtime_error(std::to_string(block));
    });
  } catch (const std::runtime_error& error) {
    TE_EXPECT(error.what() == std::to_string(thrower), "another exception: %s", error.what());
    return;
  }
  fail("the exception of block %lld was lost", static_cast<long long>(thrower));
}

template <typename Caller>
void from_all_callers(uint64_t seed, const Caller& caller) {
  Threads threads;
  for (uint64_t c = 0; c < kNumCallers; ++c) {
    threads.start([&caller, seed, c] {
      Random random(seed * kNumCallers + c);
      for (int64_t call = 0; call < kCallsPerRound; ++call) caller(&random, call);
    });
  }
}

}  // namespace

void stress_thread_pool(const Run& run) {
  for (Rounds rounds(run); rounds.next();) {
    from_all_callers(rounds.seed(), [](Random* random, int64_t call) {
      const int64_t num_blocks = random->skewed_below(300);
      const int num_threads = static_cast<int>(random->between(1, 4));
      if (num_blocks > 0 && random->one_in(16)) {
        call_and_throw(num_blocks, num_threads, random->below(num_blocks));
        return;
      }
      call_once(num_blocks, call,
                [num_threads](int64_t n, const auto& fn) { parallel_for(n, num_threads, fn); });
    });
  }
}

void stress_reader_pool(const Run& run) {
  for (Rounds rounds(run); rounds.next();) {
    ReaderPool pool(rounds.seed() % 5);
    from_all_callers(rounds.seed(), [&pool](Random* random, int64_t call) {
      const auto helpers = static_cast<size_t>(random->below(6));
      call_once(random->skewed_below(300), call, [&pool, helpers](int64_t n, const auto& fn) {
        pool.parallel_for(static_cast<size_t>(n), helpers,
                          [&fn](size_t block) { fn(static_cast<int64_t>(block)); });
      });
    });
  }
}

}  // namespace te::stress
