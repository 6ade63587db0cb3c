// Makes one allocation fail, or all from one on, inside a call of the part that is tested: `new`,
// and the mappings of core/virtual_array.h.
#pragma once

#include <cstdint>
#include <new>
#include <utility>

namespace te::stress {

// Which allocation fails is counted from the start over all calls, of all threads.
class FailingMemory {
 public:
  // The `number`-th from 1; `for_good`: and every later one, until that call has ended.
  static void arm(int64_t number, bool for_good);
  // Whether it has been reached.
  static bool has_failed();

  // Allocations count, and fail, while fn runs.
  template <typename Fn>
  static auto during(const Fn& fn) {
    const Inside inside;
    return fn();
  }

  // As `during`, but fn runs a second time, with memory, if an allocation failed in the first: it
  // is to find everything as it was, or to be refused.
  template <typename Fn>
  static auto twice(const Fn& fn) {
    try {
      return during(fn);
    } catch (const std::bad_alloc&) {
    }
    return fn();
  }

 private:
  struct Inside {
    Inside();
    ~Inside();
  };
};

}  // namespace te::stress
