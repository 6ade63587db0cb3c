#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "bindings/arrays.h"
#include "bindings/segments.h"
#include "core/float_state.h"
#include "core/record_array.h"
#include "kernels/kernels.h"
#include "residency/planner.h"
#include "residency/step_plan.h"

namespace te {
namespace {

using Slots = Array1<const int32_t>;
using Floats = Array1<const float>;

// How occurrences make bags and where their rows lie in `out`; fixed per module.
struct BagLayout {
  std::vector<Pooling> pooling;  // (F)
  std::vector<int64_t> columns;  // (F)
  int64_t row_stride = 0;

  Bags bags(int64_t num_ids, int64_t bags_per_feature) const {
    Bags b{};
    b.num_ids = num_ids;
    b.num_features = static_cast<int64_t>(pooling.size());
    b.bags_per_feature = bags_per_feature;
    b.pooling = pooling.data();
    b.columns = columns.data();
    b.row_stride = row_stride;
    return b;
  }
};

// One batch's bags over a layout.
struct BatchBags {
  const BagLayout* layout;
  std::optional<Array1<const int64_t>> offsets;
  std::optional<Floats> sample_weights;
  std::optional<Array2<int32_t>> winners;
  int64_t bags_per_feature;

  Bags of(const int32_t* slots, const int32_t* inverse, size_t num_ids, int64_t dim) const {
    Bags b = layout->bags(static_cast<int64_t>(num_ids), bags_per_feature);
    b.slots = slots;
    b.inverse = inverse;
    b.offsets = offsets ? offsets->data() : nullptr;
    b.sample_weights = sample_weights ? sample_weights->data() : nullptr;
    b.winners = winners ? winners->data() : nullptr;
    const int64_t num_bags = b.num_features * bags_per_feature;
    const bool fits = offsets ? static_cast<int64_t>(offsets->size()) == num_bags + 1 &&
                                    offsets->data()[num_bags] == b.num_ids
                              : num_bags == b.num_ids;
    const bool weights_fit =
        !sample_weights || static_cast<int64_t>(sample_weights->size()) == b.num_ids;
    const bool winners_fit = !winners || (static_cast<int64_t>(winners->shape(0)) == num_bags &&
                                          static_cast<int64_t>(winners->shape(1)) == dim);
    if (!fits || !weights_fit || !winners_fit) {
      throw std::invalid_argument("bags do not fit the plan");
    }
    return b;
  }

  Bags of(const StepPlan& plan, int64_t dim) const {
    return of(plan.slots.data(), plan.inverse.data(), plan.inverse.size(), dim);
  }

  // Gradients of maxima go where the forward found them.
  Bags for_backward(const StepPlan& plan, int64_t dim) const {
    const auto& pooling = layout->pooling;
    if (!winners && std::find(pooling.begin(), pooling.end(), Pooling::kMax) != pooling.end()) {
      throw std::invalid_argument("a maximum's backward needs its winners");
    }
    return of(plan, dim);
  }
};

// An optimizer's step for one pool.
struct StepSpec {
  Step step{};
  std::vector<uint32_t> table_words;
  std::optional<uint64_t> rounding_key;

  // `rounding` must outlive the result.
  Step of(const StepPlan& plan, Rounding* rounding) const {
    Step out = step;
    if (rounding_key) {
      *rounding = {*rounding_key, table_words.data(), plan.tables.data(), plan.keys.data()};
      out.rounding = rounding;
    }
    return out;
  }
};

Groups groups_of(const StepPlan& plan) {
  return {plan.group_start.data(), plan.group.data(), static_cast<int64_t>(plan.slots.size())};
}

void check_weights(const RecordArray& a) {
  if (a.type() == WeightType::kInt8) throw std::invalid_argument("int8 rows are read-only");
}

Records records_of(RecordArray& a) {
  return {a.weights(), a.state(), a.dim(), a.state_floats(), a.type()};
}

}  // namespace

void bind_kernels(nb::module_& m) {
  nb::class_<BagLayout>(m, "BagLayout")
      .def(
          "__init__",
          [](BagLayout* self, const std::vector<int>& pooling, const std::vector<int64_t>& columns,
             int64_t row_stride) {
            new (self) BagLayout;
            for (int p : pooling) self->pooling.push_back(static_cast<Pooling>(p));
            self->columns = columns;
            self->row_stride = row_stride;
          },
          nb::arg("pooling"), nb::arg("columns"), nb::arg("row_stride"));

  nb::class_<BatchBags>(m, "BatchBags")
      .def(
          "__init__",
          [](BatchBags* self, const BagLayout& layout, std::optional<Array1<const int64_t>> offsets,
             std::optional<Floats> sample_weights, std::optional<Array2<int32_t>> winners,
             int64_t bags_per_feature) {
            new (self) BatchBags{&layout, offsets, sample_weights, winners, bags_per_feature};
          },
          nb::keep_alive<1, 2>(), nb::arg("layout"), nb::arg("offsets").none(),
          nb::arg("sample_weights").none(), nb::arg("winners").noconvert().none(),
          nb::arg("bags_per_feature"));

  nb::class_<StepSpec>(m, "StepSpec")
      .def(
          "__init__",
          [](StepSpec* self, int kind, const std::vector<double>& hyper, bool by_frequency,
             double scale, double clip_value, double clip_row_norm, double keep, double l2,
             std::optional<uint64_t> rounding_key, const std::vector<uint32_t>& table_words) {
            new (self) StepSpec;
            Step& s = self->step;
            s.kind = static_cast<OptimizerKind>(kind);
            if (hyper.size() > 12 || kind < 0 || kind >= static_cast<int>(OptimizerKind::kCount)) {
              throw std::invalid_argument("unknown optimizer");
            }
            std::transform(hyper.begin(), hyper.end(), s.v, to_float);
            s.conditioning = {by_frequency,         to_float(scale),
                              to_float(clip_value), to_float(clip_row_norm),
                              to_float(keep),       to_float(l2)};
            self->rounding_key = rounding_key;
            self->table_words = table_words;
          },
          nb::arg("kind"), nb::arg("hyper"), nb::kw_only(), nb::arg("by_frequency"),
          nb::arg("scale"), nb::arg("clip_value"), nb::arg("clip_row_norm"), nb::arg("keep"),
          nb::arg("l2"), nb::arg("rounding_key").none(), nb::arg("table_words"));

  m.def(
      "lookup",
      [](RecordArray& a, const StepPlan& plan, const BatchBags& batch, Array2<float> out,
         int num_threads) {
        const Bags bags = batch.of(plan, a.dim());
        nb::gil_scoped_release nogil;
        lookup(records_of(a), bags, out.data(), num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("bags"), nb::arg("out").noconvert(),
      nb::arg("num_threads"));

  m.def(
      "lookup_rows",
      [](Array2<const float> weights, Slots inverse, const BatchBags& batch, Array2<float> out,
         int num_threads) {
        std::vector<int32_t> slots(weights.shape(0));
        std::iota(slots.begin(), slots.end(), 0);
        const int64_t dim = static_cast<int64_t>(weights.shape(1));
        const Bags bags = batch.of(slots.data(), inverse.data(), inverse.size(), dim);
        // The kernel reads weights only.
        const Records records{
            const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(weights.data())), nullptr, dim, 0,
            WeightType::kFloat32};
        nb::gil_scoped_release nogil;
        lookup(records, bags, out.data(), num_threads);
      },
      nb::arg("weights"), nb::arg("inverse"), nb::arg("bags"), nb::arg("out").noconvert(),
      nb::arg("num_threads"));

  m.def(
      "lookup_in_place",
      [](RecordArray& upper, RecordArray* lower, int64_t first_lower_slot, Slots slots,
         std::optional<Array2<const uint8_t>> scratch, const BatchBags& batch, Array2<float> out,
         int num_threads) {
        check_weights(upper);
        const Bags bags = batch.of(nullptr, nullptr, slots.size(), upper.dim());
        const Records above = records_of(upper);
        const Records below = lower ? records_of(*lower) : Records{};
        const bool fits =
            !scratch || static_cast<int64_t>(scratch->shape(1)) == upper.record_bytes();
        if (!fits) throw std::invalid_argument("records of another length");
        const Places places{slots.data(),
                            &above,
                            lower ? &below : nullptr,
                            scratch ? scratch->data() : nullptr,
                            upper.record_bytes(),
                            first_lower_slot};
        nb::gil_scoped_release nogil;
        lookup_in_place(places, bags, out.data(), num_threads);
      },
      nb::arg("upper"), nb::arg("lower").none(), nb::arg("first_lower_slot"), nb::arg("slots"),
      nb::arg("scratch").none(), nb::arg("bags"), nb::arg("out").noconvert(),
      nb::arg("num_threads"));

  m.def(
      "lookup_whole",
      [](RecordArray& a, Array1<const int64_t> first_slots, nb::handle given,
         const BatchBags& batch, Array2<float> out, int num_threads) {
        check_weights(a);
        std::vector<WholeRun> runs;
        size_t num_ids = 0;
        for (const Segment& s : segments_of(given)) {
          const auto table = static_cast<size_t>(s.table);
          if (table >= first_slots.size() || first_slots.data()[table] < 0) {
            throw std::invalid_argument("a table that is not whole");
          }
          runs.push_back({s.ids, s.num_ids, first_slots.data()[table]});
          num_ids += static_cast<size_t>(s.num_ids);
        }
        const Bags bags = batch.of(nullptr, nullptr, num_ids, a.dim());
        nb::gil_scoped_release nogil;
        lookup_whole(records_of(a), runs, bags, out.data(), num_threads);
      },
      nb::arg("records"), nb::arg("first_slots"), nb::arg("segments"), nb::arg("bags"),
      nb::arg("out").noconvert(), nb::arg("num_threads"));

  // The checks and lookup_whole of one feature whose table starts at slot 0. Returns false, with
  // `out` as it was, where an id is outside the table, a row is not in its slot, or the offsets
  // make no bags.
  m.def(
      "lookup_plain",
      [](RecordArray& a, Planner& planner, int64_t num_rows, Array1<const int64_t> ids,
         std::optional<Array1<const int64_t>> offsets, bool complete, const BagLayout& layout,
         Array2<float> out, int num_threads) {
        check_weights(a);
        const auto num_ids = static_cast<int64_t>(ids.size());
        const auto num_bags = static_cast<int64_t>(out.shape(0));
        Bags bags = layout.bags(num_ids, num_bags);
        nb::gil_scoped_release nogil;
        if (first_bad_id(ids.data(), num_ids, num_rows, num_threads) >= 0) return false;
        if (!planner.holds_for_good({{0, ids.data(), num_ids}}, num_threads)) return false;
        std::vector<int64_t> bounds;
        if (offsets) {
          bounds.assign(offsets->data(), offsets->data() + offsets->size());
          if (!complete) bounds.push_back(num_ids);
          const auto n = static_cast<int64_t>(bounds.size());
          if (n != num_bags + 1 || !are_bag_bounds(bounds.data(), n, num_ids)) return false;
        } else if (num_ids != num_bags) {
          if (num_bags == 0 || num_ids % num_bags != 0) return false;
          for (int64_t b = 0; b <= num_bags; ++b) bounds.push_back(b * (num_ids / num_bags));
        }
        bags.offsets = bounds.empty() ? nullptr : bounds.data();
        lookup_whole(records_of(a), {{ids.data(), num_ids, 0}}, bags, out.data(), num_threads);
        return true;
      },
      nb::arg("records"), nb::arg("planner"), nb::arg("num_rows"), nb::arg("ids"),
      nb::arg("offsets").none(), nb::arg("complete"), nb::arg("layout"), nb::arg("out").noconvert(),
      nb::arg("num_threads"));

  m.def(
      "update",
      [](RecordArray& a, const StepPlan& plan, const BatchBags& batch, Array2<const float> grad,
         const StepSpec& spec, int num_threads) {
        check_weights(a);
        const Bags bags = batch.for_backward(plan, a.dim());
        Rounding rounding;
        const Step step = spec.of(plan, &rounding);
        nb::gil_scoped_release nogil;
        update(records_of(a), bags, groups_of(plan), grad.data(), step, num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("bags"), nb::arg("grad"), nb::arg("step"),
      nb::arg("num_threads"));

  m.def(
      "row_gradients",
      [](const StepPlan& plan, const BatchBags& batch, Array2<const float> grad, Array2<float> rows,
         int num_threads) {
        const int64_t dim = static_cast<int64_t>(rows.shape(1));
        const Bags bags = batch.for_backward(plan, dim);
        check_rows(rows.shape(0), plan.slots.size());
        nb::gil_scoped_release nogil;
        row_gradients(bags, groups_of(plan), grad.data(), dim, rows.data(), num_threads);
      },
      nb::arg("plan"), nb::arg("bags"), nb::arg("grad"), nb::arg("rows").noconvert(),
      nb::arg("num_threads"));

  m.def(
      "condition_rows",
      [](const StepPlan& plan, const StepSpec& spec, Array2<float> rows, int num_threads) {
        check_rows(rows.shape(0), plan.slots.size());
        nb::gil_scoped_release nogil;
        return condition_rows(groups_of(plan), static_cast<int64_t>(rows.shape(1)),
                              spec.step.conditioning, rows.data(), num_threads);
      },
      nb::arg("plan"), nb::arg("step"), nb::arg("rows").noconvert(), nb::arg("num_threads"));

  m.def(
      "apply_rows",
      [](RecordArray& a, const StepPlan& plan, Array2<float> rows, const StepSpec& spec,
         int num_threads) {
        check_weights(a);
        check_rows(rows.shape(0), plan.slots.size());
        check_dim(rows.shape(1), a.dim());
        Rounding rounding;
        const Step step = spec.of(plan, &rounding);
        Bags bags{};
        bags.slots = plan.slots.data();
        nb::gil_scoped_release nogil;
        apply_rows(records_of(a), bags, groups_of(plan), rows.data(), step, num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("rows").noconvert(), nb::arg("step"),
      nb::arg("num_threads"));

  m.def(
      "sample_weight_gradient",
      [](RecordArray& a, const StepPlan& plan, const BatchBags& batch, Array2<const float> grad,
         Array1<float> out, int num_threads) {
        const Bags bags = batch.for_backward(plan, a.dim());
        check_rows(out.size(), static_cast<size_t>(bags.num_ids));
        nb::gil_scoped_release nogil;
        sample_weight_gradient(records_of(a), bags, grad.data(), out.data(), num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("bags"), nb::arg("grad"),
      nb::arg("out").noconvert(), nb::arg("num_threads"));

  m.def(
      "renormalise",
      [](RecordArray& a, const StepPlan& plan, double max_norm, double norm_type, int num_threads) {
        check_weights(a);
        nb::gil_scoped_release nogil;
        renormalise(records_of(a), plan.slots.data(), static_cast<int64_t>(plan.slots.size()),
                    to_float(max_norm), norm_type, num_threads);
      },
      nb::arg("records"), nb::arg("plan"), nb::arg("max_norm"), nb::arg("norm_type"),
      nb::arg("num_threads"));

  m.def(
      "advise_huge_pages",
      [](Array1<float> memory) {
        const auto first = reinterpret_cast<uintptr_t>(memory.data());
        const uintptr_t page = 4096;
        const uintptr_t begin = (first + page - 1) / page * page;
        const uintptr_t end = (first + memory.size() * sizeof(float)) / page * page;
        nb::gil_scoped_release nogil;
        // Advice: where the system does not take it, pages are small.
        if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
      },
      nb::arg("memory").noconvert());

  m.def("largest_magnitude", [](Array2<const float> x, int num_threads) {
    nb::gil_scoped_release nogil;
    return largest_magnitude(x.data(), static_cast<int64_t>(x.size()), num_threads);
  });

  m.def("optimizer_names", &optimizer_names);
  m.def("available_isas", &available_isas);
  m.def("current_isa", &current_isa);
  m.def("select_isa", &select_isa);
}

}  // namespace te
