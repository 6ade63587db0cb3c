#include <optional>

#include "bindings/arrays.h"
#include "core/float_state.h"
#include "core/record_array.h"
#include "core/weight_type.h"
#include "kernels/kernels.h"
#include "residency/ids.h"

namespace te {
namespace {

// A `with` block in Python whose arithmetic is done with StandardFloats, in the thread that enters
// it.
class StandardFloatsBlock {
 public:
  void enter() {
    if (floats_) throw std::logic_error("this block has been entered already");
    floats_.emplace();
  }
  void exit() { floats_.reset(); }

 private:
  std::optional<StandardFloats> floats_;
};

template <typename T>
void check_scale_bias(const Array2<T>& scale_bias, size_t num_rows, WeightType type) {
  check_rows(scale_bias.shape(0), num_rows);
  if (type == WeightType::kInt8 && scale_bias.shape(1) < 2) {
    throw std::invalid_argument("int8 rows keep scale and bias");
  }
}

}  // namespace

void bind_row_formats(nb::module_& m) {
  nb::class_<StandardFloatsBlock>(m, "StandardFloats")
      .def(nb::init<>())
      .def("__enter__", &StandardFloatsBlock::enter)
      .def("__exit__", [](StandardFloatsBlock& block, const nb::args&) { block.exit(); });

  m.def(
      "initial_weights",
      [](Array1<const uint32_t> tables, Array1<const int64_t> rows, uint64_t seed, double lo,
         double scale, Array2<float> out) {
        check_rows(rows.size(), out.shape(0));
        check_rows(rows.size(), tables.size());
        nb::gil_scoped_release nogil;
        const StandardFloats floats;
        const UniformInit init{seed, to_float(lo), to_float(scale)};
        const int64_t dim = static_cast<int64_t>(out.shape(1));
        for (size_t i = 0; i < rows.size(); ++i) {
          initial_weights(init, tables.data()[i], rows.data()[i], dim,
                          out.data() + static_cast<int64_t>(i) * dim);
        }
      },
      nb::arg("tables"), nb::arg("rows"), nb::arg("seed"), nb::arg("lo"), nb::arg("scale"),
      nb::arg("out").noconvert());

  m.def(
      "add_rows",
      [](Array2<const float> rows, Array1<const int64_t> where, Array2<float> total,
         int num_threads) {
        check_rows(where.size(), rows.shape(0));
        check_dim(total.shape(1), static_cast<int64_t>(rows.shape(1)));
        nb::gil_scoped_release nogil;
        const int64_t n = static_cast<int64_t>(where.size());
        if (first_bad_id(where.data(), n, static_cast<int64_t>(total.shape(0))) >= 0) {
          throw std::invalid_argument("no such row");
        }
        add_rows(rows.data(), where.data(), n, static_cast<int64_t>(rows.shape(1)), total.data(),
                 num_threads);
      },
      nb::arg("rows"), nb::arg("where"), nb::arg("total").noconvert(), nb::arg("num_threads"));

  m.def(
      "encode_rows",
      [](Array2<const float> values, int weight_type, Array2<uint8_t> rows,
         Array2<float> scale_bias) {
        check_rows(values.shape(0), rows.shape(0));
        const int64_t dim = static_cast<int64_t>(values.shape(1));
        const WeightType type = static_cast<WeightType>(weight_type);
        check_dim(rows.shape(1), dim * weight_bytes(type));
        check_scale_bias(scale_bias, rows.shape(0), type);
        nb::gil_scoped_release nogil;
        const StandardFloats floats;
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
        check_scale_bias(scale_bias, rows.shape(0), type);
        nb::gil_scoped_release nogil;
        const StandardFloats floats;
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
