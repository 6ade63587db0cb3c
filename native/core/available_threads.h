// Whether the process may have more threads. Libraries that start some, as RocksDB does, end the
// process where they cannot.
#pragma once

#include <cstddef>

namespace te {

// How many of `wanted` threads this process can start in addition to those that it has, all alive
// at once. They have ended on return. From any thread.
size_t available_threads(size_t wanted);

}  // namespace te
