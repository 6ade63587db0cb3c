#include "core/row_hash.h"

#include <sys/random.h>
#include <unistd.h>

#include <chrono>

namespace te {
namespace {

HashSecret draw_secret() {
  HashSecret secret{};
  if (getrandom(&secret, sizeof(secret), GRND_NONBLOCK) != sizeof(secret)) {
    // Early in a machine's life there may be no randomness yet.
    uint64_t x = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    x ^= reinterpret_cast<uintptr_t>(&secret) ^ (static_cast<uint64_t>(getpid()) << 32);
    for (uint64_t& v : secret.v) v = x = fold(x ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
  }
  // Products with these must not lose bits: odd, and none of them small.
  for (uint64_t& v : secret.v) v |= 0x8000000000000001u;
  return secret;
}

}  // namespace

const HashSecret kHashSecret = draw_secret();

}  // namespace te
