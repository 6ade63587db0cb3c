// A std::vector whose resize leaves new elements as they are: for arrays that are filled at once,
// where zeros first would be a pass over memory for nothing.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace te {

template <typename T>
struct Unfilled : std::allocator<T> {
  static_assert(std::is_trivially_copyable_v<T>, "elements start as any bytes");

  template <typename U>
  struct rebind {
    using other = Unfilled<U>;
  };
  template <typename U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <typename U, typename... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...);
  }
};

template <typename T>
using PlainVector = std::vector<T, Unfilled<T>>;

}  // namespace te
