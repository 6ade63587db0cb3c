// What is left of a planner when one of its calls ended halfway, as when memory ran out.
//
// Such a call is not undone. The planner refuses what it can no longer do, with the cause, instead
// of going on from a state that nobody intended. Part of a planner, which holds its lock.
#pragma once

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

namespace te {

// An earlier call failed halfway.
struct PlannerFailed : std::runtime_error {
  explicit PlannerFailed(const std::string& cause) : std::runtime_error(cause) {}
};

class Failure {
 public:
  enum class Left {
    kAll,
    kRows,     // which row is where, and which is dirty; no batch can be added or planned
    kNothing,  // a plan is lost, and with it what it moved
  };

  // Calls fn(). If it throws, no more than `left` is left.
  template <typename Fn>
  auto guard(Left left, const Fn& fn) {
    try {
      return fn();
    } catch (const std::exception& error) {
      note(left, error.what());
      throw;
    } catch (...) {
      note(left, "an unknown error");
      throw;
    }
  }

  // The first cause counts. Takes no memory: there may be none.
  void note(Left left, const char* cause) {
    if (left_ == Left::kAll) std::snprintf(cause_, sizeof(cause_), "%s", cause);
    if (left > left_) left_ = left;
  }

  bool any() const { return left_ != Left::kAll; }
  // Both throw PlannerFailed.
  void require_all() const {
    if (any()) throw PlannerFailed(cause_);
  }
  void require_rows() const {
    if (left_ == Left::kNothing) throw PlannerFailed(cause_);
  }

 private:
  Left left_ = Left::kAll;
  char cause_[200] = "";
};

}  // namespace te
