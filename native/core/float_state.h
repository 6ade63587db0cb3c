// The floating-point state in which all arithmetic here is defined: round to nearest, subnormal
// numbers kept, no traps.
//
// A thread's state is its own, and it inherits that of the thread that made it. Other libraries
// change it (torch.set_flush_denormal, -ffast-math), so nothing here relies on what it finds.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace te {

// While it lives, this thread's state is the standard one; then what it was before, exception flags
// included. Costs a few nanoseconds, and less inside another one.
class StandardFloats {
 public:
#if defined(__x86_64__)
  StandardFloats() : before_(_mm_getcsr()) {
    if ((before_ & ~kFlags) != kStandard) set(kStandard);
  }
  ~StandardFloats() { set(before_); }
#elif defined(__aarch64__)
  StandardFloats() {
    asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(before_), "=r"(flags_)::"memory");
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}) : "memory");
  }
  ~StandardFloats() {
    asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" ::"r"(before_), "r"(flags_) : "memory");
  }
#else
  StandardFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~StandardFloats() { std::fesetenv(&before_); }
#endif
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint32_t kFlags = 0x3F;       // exceptions that have been raised
  static constexpr uint32_t kStandard = 0x1F80;  // every exception masked, all else off
  // The compiler must move no load or store across, and so no arithmetic between them.
  static void set(uint32_t state) { asm volatile("ldmxcsr %0" ::"m"(state) : "memory"); }
  const uint32_t before_;
#elif defined(__aarch64__)
  uint64_t before_, flags_;
#else
  std::fenv_t before_;
#endif
};

// `x` rounded to nearest, whatever this thread's state is.
inline float to_float(double x) {
  const StandardFloats floats;
  const volatile double wide = x;  // else the conversion may move out of this scope
  const volatile float narrow = static_cast<float>(wide);
  return narrow;
}

}  // namespace te
