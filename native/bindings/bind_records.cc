#include <nanobind/stl/optional.h>

#include <optional>

#include "bindings/arrays.h"
#include "core/float_state.h"
#include "core/record_array.h"

namespace te {
namespace {

using Slots = Array1<const int32_t>;
using Bytes2 = Array2<uint8_t>;

}  // namespace

void bind_records(nb::module_& m) {
  nb::class_<RecordArray>(m, "RecordArray")
      .def(
          "__init__",
          [](RecordArray* self, int64_t num_slots, int64_t dim, int weight_type,
             int64_t state_floats) {
            new (self)
                RecordArray(num_slots, dim, static_cast<WeightType>(weight_type), state_floats);
          },
          nb::arg("num_slots"), nb::arg("dim"), nb::arg("weight_type"), nb::arg("state_floats"))
      .def_prop_ro("record_bytes", &RecordArray::record_bytes)
      .def(
          "gather",
          [](RecordArray& a, Slots slots, Bytes2 records, int num_threads) {
            check_rows(slots.size(), records.shape(0));
            nb::gil_scoped_release nogil;
            a.gather(slots.data(), static_cast<int64_t>(slots.size()), records.data(), num_threads);
          },
          nb::arg("slots"), nb::arg("records").noconvert(), nb::arg("num_threads"))
      .def(
          "scatter",
          [](RecordArray& a, Slots slots, Array2<const uint8_t> records,
             std::optional<Array1<const bool>> keep, int num_threads) {
            check_rows(slots.size(), records.shape(0));
            nb::gil_scoped_release nogil;
            a.scatter(slots.data(), static_cast<int64_t>(slots.size()), records.data(),
                      keep ? keep->data() : nullptr, num_threads);
          },
          nb::arg("slots"), nb::arg("records"), nb::arg("keep").none(), nb::arg("num_threads"))
      .def(
          "initialise",
          [](RecordArray& a, Slots slots, Array1<const uint32_t> tables, Array1<const int64_t> rows,
             std::optional<Array1<const bool>> skip, uint64_t seed, double lo, double scale,
             int num_threads) {
            check_rows(slots.size(), rows.size());
            check_rows(slots.size(), tables.size());
            nb::gil_scoped_release nogil;
            a.initialise(slots.data(), static_cast<int64_t>(slots.size()), tables.data(),
                         rows.data(), skip ? skip->data() : nullptr,
                         {seed, to_float(lo), to_float(scale)}, num_threads);
          },
          nb::arg("slots"), nb::arg("tables"), nb::arg("rows"), nb::arg("skip").none(),
          nb::arg("seed"), nb::arg("lo"), nb::arg("scale"), nb::arg("num_threads"));
}

}  // namespace te
