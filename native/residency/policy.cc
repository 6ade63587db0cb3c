#include "residency/policy.h"

#include <stdexcept>

namespace te {

std::unique_ptr<EvictionPolicy> make_policy(const std::string& name, const PolicySpace& space) {
  const std::string ahead = "lookahead:";
  if (name == "lookahead") return make_policy(ahead + "lfu", space);
  if (name.compare(0, ahead.size(), ahead) == 0) {
    return make_lookahead(space, make_policy(name.substr(ahead.size()), space));
  }
  if (name == "lru") return make_lru(space);
  if (name == "lfu") return make_lfu(space);
  if (name == "s3fifo") return make_s3fifo(space);
  throw std::invalid_argument("unknown policy " + name);
}

}  // namespace te
