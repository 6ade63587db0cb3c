// A process-wide pool of worker threads for loops over independent blocks.
//
// The caller takes part, so `parallel_for(n, 1, fn)` runs inline and needs no worker. Which thread
// runs which block is not fixed: callers must give results that do not depend on it. Several
// threads may call at once.
#pragma once

#include <cstdint>
#include <functional>

namespace te {

// Calls fn(i) once for every i in [0, num_blocks), on at most `num_threads` threads, all of them
// with StandardFloats, and returns when all calls have returned. The first exception thrown by fn
// is rethrown here; the other blocks may or may not have run. REQUIRES: num_threads >= 1.
void parallel_for(int64_t num_blocks, int num_threads, const std::function<void(int64_t)>& fn);

}  // namespace te
