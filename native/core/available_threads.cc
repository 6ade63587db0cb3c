#include "core/available_threads.h"

#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace te {

size_t available_threads(size_t wanted) {
  std::mutex all_started;
  std::vector<std::thread> threads;
  threads.reserve(wanted);
  {
    std::lock_guard<std::mutex> lock(all_started);
    try {
      while (threads.size() < wanted) {
        threads.emplace_back([&] { std::lock_guard<std::mutex> waits(all_started); });
      }
    } catch (const std::system_error&) {
      // These are all that there are.
    }
  }
  for (std::thread& thread : threads) thread.join();
  return threads.size();
}

}  // namespace te
