#include "core/check.h"

#include <cstdio>
#include <cstdlib>

namespace te {

void check_failed(const char* file, int line, const char* condition, const char* what) {
  std::fprintf(stderr, "%s:%d: contract violated: %s (%s)\n", file, line, what, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace te
