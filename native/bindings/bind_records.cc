#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "bindings/arrays.h"
#include "core/record_array.h"

namespace te {
namespace {

using Slots = Array1<const int32_t>;
using Bytes2 = Array2<uint8_t>;

void check_rows(size_t slots, size_t rows) {
  if (slots != rows) throw std::invalid_argument("slots and rows differ in number");
}

void check_dim(size_t columns, int64_t dim) {
  if (static_cast<int64_t>(columns) != dim) throw std::invalid_argument("rows differ in dim");
}

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
             std::optional<Array1<const bool>> skip, uint64_t seed, float lo, float scale,
             int num_threads) {
            check_rows(slots.size(), rows.size());
            check_rows(slots.size(), tables.size());
            nb::gil_scoped_release nogil;
            a.initialise(slots.data(), static_cast<int64_t>(slots.size()), tables.data(),
                         rows.data(), skip ? skip->data() : nullptr, {seed, lo, scale},
                         num_threads);
          },
          nb::arg("slots"), nb::arg("tables"), nb::arg("rows"), nb::arg("skip").none(),
          nb::arg("seed"), nb::arg("lo"), nb::arg("scale"), nb::arg("num_threads"));

  m.def(
      "initial_weights",
      [](Array1<const uint32_t> tables, Array1<const int64_t> rows, uint64_t seed, float lo,
         float scale, Array2<float> out) {
        check_rows(rows.size(), out.shape(0));
        check_rows(rows.size(), tables.size());
        nb::gil_scoped_release nogil;
        const int64_t dim = static_cast<int64_t>(out.shape(1));
        for (size_t i = 0; i < rows.size(); ++i) {
          initial_weights({seed, lo, scale}, tables.data()[i], rows.data()[i], dim,
                          out.data() + static_cast<int64_t>(i) * dim);
        }
      },
      nb::arg("tables"), nb::arg("rows"), nb::arg("seed"), nb::arg("lo"), nb::arg("scale"),
      nb::arg("out").noconvert());

  m.def(
      "encode_rows",
      [](Array2<const float> values, int weight_type, Array2<uint8_t> rows,
         Array2<float> scale_bias) {
        check_rows(values.shape(0), rows.shape(0));
        const int64_t dim = static_cast<int64_t>(values.shape(1));
        const WeightType type = static_cast<WeightType>(weight_type);
        check_dim(rows.shape(1), dim * weight_bytes(type));
        for (size_t i = 0; i < values.shape(0); ++i) {
          encode_row(type, values.data() + i * values.shape(1), dim,
                     rows.data() + i * rows.shape(1), scale_bias.data() + i * scale_bias.shape(1));
        }
      },
      nb::arg("values"), nb::arg("weight_type"), nb::arg("rows").noconvert(),
      nb::arg("scale_bias").noconvert());

  m.def(
      "decode_rows",
      [](Array2<const uint8_t> rows, int weight_type, Array2<const float> scale_bias,
         Array2<float> values) {
        check_rows(values.shape(0), rows.shape(0));
        const int64_t dim = static_cast<int64_t>(values.shape(1));
        const WeightType type = static_cast<WeightType>(weight_type);
        check_dim(rows.shape(1), dim * weight_bytes(type));
        for (size_t i = 0; i < values.shape(0); ++i) {
          decode_row(type, rows.data() + i * rows.shape(1),
                     scale_bias.data() + i * scale_bias.shape(1), dim,
                     values.data() + i * values.shape(1));
        }
      },
      nb::arg("rows"), nb::arg("weight_type"), nb::arg("scale_bias"),
      nb::arg("values").noconvert());
}

}  // namespace te
