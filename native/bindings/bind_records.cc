#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "bindings/arrays.h"
#include "core/record_array.h"
#include "kernels/kernels.h"
#include "residency/step_plan.h"

namespace te {
namespace {

using Slots = Array1<const int32_t>;
using Bytes2 = Array2<uint8_t>;
using Floats = Array1<const float>;

// How occurrences make bags and where their rows lie in `out`; fixed per module, except the batch.
struct BagLayout {
  std::vector<uint8_t> mean;     // (F)
  std::vector<int64_t> columns;  // (F)
  int64_t row_stride = 0;
};

using Offsets = std::optional<Array1<const int64_t>>;

Bags bags_of(const int32_t* slots, const int32_t* inverse, size_t num_ids, const BagLayout& layout,
             const Offsets& offsets, const std::optional<Floats>& sample_weights,
             int64_t bags_per_feature) {
  Bags b{};
  b.slots = slots;
  b.inverse = inverse;
  b.offsets = offsets ? offsets->data() : nullptr;
  b.sample_weights = sample_weights ? sample_weights->data() : nullptr;
  b.num_ids = static_cast<int64_t>(num_ids);
  b.num_features = static_cast<int64_t>(layout.mean.size());
  b.bags_per_feature = bags_per_feature;
  b.mean = layout.mean.data();
  b.columns = layout.columns.data();
  b.row_stride = layout.row_stride;
  const int64_t num_bags = b.num_features * bags_per_feature;
  const bool fits = offsets ? static_cast<int64_t>(offsets->size()) == num_bags + 1 &&
                                  offsets->data()[num_bags] == b.num_ids
                            : num_bags == b.num_ids;
  if (!fits || (sample_weights && static_cast<int64_t>(sample_weights->size()) != b.num_ids)) {
    throw std::invalid_argument("bags do not fit the plan");
  }
  return b;
}

Bags bags_of(const StepPlan& plan, const BagLayout& layout, const Offsets& offsets,
             const std::optional<Floats>& sample_weights, int64_t bags_per_feature) {
  return bags_of(plan.slots.data(), plan.inverse.data(), plan.inverse.size(), layout, offsets,
                 sample_weights, bags_per_feature);
}

void check_rows(size_t slots, size_t rows) {
  if (slots != rows) throw std::invalid_argument("slots and rows differ in number");
}

Records records_of(RecordArray& a) { return {a.weights(), a.state(), a.dim(), a.state_floats()}; }

}  // namespace

void bind_records(nb::module_& m) {
  nb::class_<RecordArray>(m, "RecordArray")
      .def(nb::init<int64_t, int64_t, int64_t>(), nb::arg("num_slots"), nb::arg("dim"),
           nb::arg("state_floats"))
      .def_prop_ro("record_bytes", &RecordArray::record_bytes)
      .def("gather",
           [](RecordArray& a, Slots slots, Bytes2 records, int num_threads) {
             check_rows(slots.size(), records.shape(0));
             nb::gil_scoped_release nogil;
             a.gather(slots.data(), static_cast<int64_t>(slots.size()), records.data(),
                      num_threads);
           })
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

  m.def("initial_weights", [](Array1<const uint32_t> tables, Array1<const int64_t> rows,
                              uint64_t seed, float lo, float scale, Array2<float> out) {
    check_rows(rows.size(), out.shape(0));
    check_rows(rows.size(), tables.size());
    nb::gil_scoped_release nogil;
    const int64_t dim = static_cast<int64_t>(out.shape(1));
    for (size_t i = 0; i < rows.size(); ++i) {
      initial_weights({seed, lo, scale}, tables.data()[i], rows.data()[i], dim,
                      out.data() + static_cast<int64_t>(i) * dim);
    }
  });

  nb::class_<BagLayout>(m, "BagLayout")
      .def(
          "__init__",
          [](BagLayout* self, const std::vector<bool>& mean, const std::vector<int64_t>& columns,
             int64_t row_stride) {
            new (self) BagLayout;
            for (bool b : mean) self->mean.push_back(b ? 1 : 0);
            self->columns = columns;
            self->row_stride = row_stride;
          },
          nb::arg("mean"), nb::arg("columns"), nb::arg("row_stride"));

  m.def(
      "lookup",
      [](RecordArray& a, const StepPlan& plan, const BagLayout& layout, Offsets offsets,
         std::optional<Floats> sample_weights, int64_t bags_per_feature, Array2<float> out,
         int num_threads) {
        const Bags bags = bags_of(plan, layout, offsets, sample_weights, bags_per_feature);
        nb::gil_scoped_release nogil;
        lookup(records_of(a), bags, out.data(), num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("layout"), nb::arg("offsets").none(),
      nb::arg("sample_weights").none(), nb::arg("bags_per_feature"), nb::arg("out"),
      nb::arg("num_threads"));

  m.def(
      "lookup_rows",
      [](Array2<const float> weights, Slots inverse, const BagLayout& layout, Offsets offsets,
         std::optional<Floats> sample_weights, int64_t bags_per_feature, Array2<float> out,
         int num_threads) {
        std::vector<int32_t> slots(weights.shape(0));
        std::iota(slots.begin(), slots.end(), 0);
        const Bags bags = bags_of(slots.data(), inverse.data(), inverse.size(), layout, offsets,
                                  sample_weights, bags_per_feature);
        // The kernel reads weights only.
        const Records records{const_cast<float*>(weights.data()), nullptr,
                              static_cast<int64_t>(weights.shape(1)), 0};
        nb::gil_scoped_release nogil;
        lookup(records, bags, out.data(), num_threads);
      },
      nb::arg("weights"), nb::arg("inverse"), nb::arg("layout"), nb::arg("offsets").none(),
      nb::arg("sample_weights").none(), nb::arg("bags_per_feature"), nb::arg("out"),
      nb::arg("num_threads"));

  m.def(
      "update",
      [](RecordArray& a, const StepPlan& plan, const BagLayout& layout, Offsets offsets,
         std::optional<Floats> sample_weights, int64_t bags_per_feature, Array2<const float> grad,
         int kind, const std::vector<float>& hyper, int num_threads) {
        const Bags bags = bags_of(plan, layout, offsets, sample_weights, bags_per_feature);
        Hyper h{};
        h.kind = static_cast<OptimizerKind>(kind);
        if (hyper.size() > 8 || kind < 0 || kind > static_cast<int>(OptimizerKind::kAdam)) {
          throw std::invalid_argument("unknown optimizer");
        }
        std::copy(hyper.begin(), hyper.end(), h.v);
        const Groups groups{plan.group_start.data(), plan.group.data(),
                            static_cast<int64_t>(plan.slots.size())};
        nb::gil_scoped_release nogil;
        update(records_of(a), bags, groups, grad.data(), h, num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("layout"), nb::arg("offsets").none(),
      nb::arg("sample_weights").none(), nb::arg("bags_per_feature"), nb::arg("grad"),
      nb::arg("kind"), nb::arg("hyper"), nb::arg("num_threads"));

  m.def(
      "sample_weight_gradient",
      [](RecordArray& a, const StepPlan& plan, const BagLayout& layout, Offsets offsets,
         int64_t bags_per_feature, Array2<const float> grad, Array1<float> out, int num_threads) {
        const Bags bags = bags_of(plan, layout, offsets, std::nullopt, bags_per_feature);
        check_rows(out.size(), static_cast<size_t>(bags.num_ids));
        nb::gil_scoped_release nogil;
        sample_weight_gradient(records_of(a), bags, grad.data(), out.data(), num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("layout"), nb::arg("offsets").none(),
      nb::arg("bags_per_feature"), nb::arg("grad"), nb::arg("out"), nb::arg("num_threads"));

  m.def("available_isas", &available_isas);
  m.def("current_isa", &current_isa);
  m.def("select_isa", &select_isa);
}

}  // namespace te
