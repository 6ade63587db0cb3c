// Contracts that run: TE_CHECK(condition, "what must hold") ends the process with file, line and
// text where the condition is false.
//
// A failed check is a bug of ours, never a user's mistake: those raise. Built in where TE_CHECKS is
// set (debug builds, native/tests, `make test-checked`); elsewhere the condition is not evaluated.
#pragma once

#ifdef TE_CHECKS
#define TE_CHECK(condition, what) \
  ((condition) ? static_cast<void>(0) : ::te::check_failed(__FILE__, __LINE__, #condition, what))
#else
#define TE_CHECK(condition, what) static_cast<void>(sizeof(!(condition)))
#endif

namespace te {

// Whether this build has the checks, for code that only they need.
#ifdef TE_CHECKS
constexpr bool kHasChecks = true;
#else
constexpr bool kHasChecks = false;
#endif

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const char* what);

}  // namespace te
