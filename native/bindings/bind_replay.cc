#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "bindings/arrays.h"
#include "residency/replay.h"

namespace te {
namespace {

using Ids = Array1<const int64_t>;

Ids ids_of(nb::handle value) {
  // No conversion: a converted copy would die here, and the batches point into it.
  Ids ids;
  if (!nb::try_cast<Ids>(value, ids, false)) {
    throw nb::type_error("offsets and ids must be contiguous int64 arrays on the CPU");
  }
  return ids;
}

// Python's [(table, offsets (B + 1,), ids (N,)), ...]; returns the number of batches.
int64_t batches_of(const nb::list& list, std::vector<BatchedIds>* out) {
  int64_t num_batches = -1;
  for (nb::handle item : list) {
    const nb::tuple parts = nb::cast<nb::tuple>(item);
    const Ids offsets = ids_of(parts[1]);
    const Ids ids = ids_of(parts[2]);
    const int64_t mine = static_cast<int64_t>(offsets.size()) - 1;
    if (mine < 0 || (num_batches >= 0 && mine != num_batches)) {
      throw std::invalid_argument("tables differ in their number of batches");
    }
    num_batches = mine;
    for (int64_t b = 0; b < mine; ++b) {
      if (offsets(static_cast<size_t>(b)) > offsets(static_cast<size_t>(b) + 1)) {
        throw std::invalid_argument("offsets must not fall");
      }
    }
    if (offsets(0) < 0 || offsets(static_cast<size_t>(mine)) > static_cast<int64_t>(ids.size())) {
      throw std::invalid_argument("offsets lie outside the ids");
    }
    out->push_back({nb::cast<int32_t>(parts[0]), offsets.data(), ids.data()});
  }
  return std::max<int64_t>(num_batches, 0);
}

}  // namespace

void bind_replay(nb::module_& m) {
  nb::class_<Replay>(m, "Replay")
      .def(
          "__init__",
          [](Replay* self, Planner& planner, int64_t num_tables, int64_t lookahead, int64_t depth,
             bool updated, bool per_step) {
            new (self) Replay(&planner, {num_tables, lookahead, depth, updated, per_step});
          },
          nb::keep_alive<1, 2>(), nb::arg("planner"), nb::kw_only(), nb::arg("num_tables"),
          nb::arg("lookahead"), nb::arg("depth"), nb::arg("updated"), nb::arg("per_step"))
      .def("push",
           [](Replay& r, const nb::list& tables) {
             std::vector<BatchedIds> batched;
             const int64_t num_batches = batches_of(tables, &batched);
             nb::gil_scoped_release nogil;
             r.push(batched, num_batches);
           })
      .def("finish", &Replay::finish, nb::arg("num_steps"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("take_steps", [](Replay& r) { return own(r.take_steps()); })
      .def_prop_ro("num_steps", &Replay::num_steps)
      .def_prop_ro("cold", [](const Replay& r) { return r.cold(); });
}

}  // namespace te
