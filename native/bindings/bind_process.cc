// How a process ends, and how many threads it may have. See tiered_embed/store/forked.py and
// threads.py.
#include <nanobind/nanobind.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "bindings/arrays.h"
#include "core/available_threads.h"

namespace te {
namespace {

extern "C" void leave(int status, void* /*unused*/) {
  std::fflush(nullptr);
  ::_exit(status);
}

// Handlers of exit() run in the reverse order of their registration: this one ends the process
// before those that were registered until now, destructors of C++ included.
bool end_without_destructors() {
#ifdef __GLIBC__
  return ::on_exit(leave, nullptr) == 0;
#else
  return false;  // no other C library tells a handler the exit status
#endif
}

}  // namespace

void bind_process(nb::module_& m) {
  m.def("end_without_destructors", &end_without_destructors);
  m.def("available_threads", &available_threads, nb::arg("wanted"),
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace te
