// The ids of one pool's part of a batch, feature after feature, as planners take them.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "residency/ids.h"

namespace te {

class Segments {
 public:
  // `owner` keeps the ids alive.
  Segments(std::vector<Segment> parts, nb::object owner)
      : parts_(std::move(parts)), owner_(std::move(owner)) {}

  // With ids of its own, which nobody changes.
  Segments copy() const;

  const std::vector<Segment>& parts() const { return parts_; }
  int64_t num_ids() const { return num_ids_of(parts_); }

 private:
  std::vector<Segment> parts_;
  nb::object owner_;
};

// What Python passes: a Segments, or a list [(table, ids), ...], which must outlive the result.
std::vector<Segment> segments_of(nb::handle given);

}  // namespace te
