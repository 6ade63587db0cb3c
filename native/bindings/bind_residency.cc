#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/arrays.h"
#include "bindings/segments.h"
#include "core/float_state.h"
#include "core/record_array.h"
#include "residency/planner.h"

namespace te {
namespace {

using Ids = Array1<const int64_t>;

// What fn() returns, computed while other Python threads run.
template <typename Fn>
auto without_gil(const Fn& fn) {
  nb::gil_scoped_release released;
  return fn();
}

nb::list list_of(const std::vector<TableCounts>& counts) {
  nb::list out;
  for (const TableCounts& c : counts) {
    out.append(nb::make_tuple(c.lookups, c.unique, c.misses, c.staged, c.evicted, c.written_back,
                              c.overflow));
  }
  return out;
}

// The tier whose rows a plan stages with their initial values, because nothing is below it.
struct InitialRows {
  RecordArray* records;
  std::vector<uint32_t> tables;  // the identity of each, as Philox counts them
  UniformInit init;
  int num_threads;

  // The planner takes the plan's rows for filled, so that it fails where they are not.
  void fill(const StepPlan& plan, Planner* planner) const {
    try {
      fill(plan);
    } catch (const std::exception& error) {
      planner->fail(error.what());
      throw;
    }
  }

  void fill(const StepPlan& plan) const {
    const size_t n = plan.staged.size();
    if (n == 0) return;
    std::vector<int32_t> slots(n);
    std::vector<uint32_t> words(n);
    std::vector<int64_t> rows(n);
    for (size_t i = 0; i < n; ++i) {
      const size_t u = static_cast<size_t>(plan.staged[i]);
      slots[i] = plan.slots[u];
      words[i] = tables[plan.tables[u]];
      rows[i] = plan.keys[u];
    }
    records->initialise(slots.data(), static_cast<int64_t>(n), words.data(), rows.data(), nullptr,
                        init, num_threads);
  }
};

template <typename Field>
auto array_of(Field StepPlan::* field) {
  return [field](nb::handle_t<StepPlan> self) {
    return view(nb::cast<const StepPlan&>(self).*field, self);
  };
}

}  // namespace

void bind_residency(nb::module_& m) {
  nb::class_<StepPlan>(m, "StepPlan")
      .def_ro("number", &StepPlan::number)
      .def_ro("overflow", &StepPlan::overflow)
      .def_prop_ro("num_ids", [](const StepPlan& plan) { return plan.inverse.size(); })
      .def_prop_ro("keys", array_of(&StepPlan::keys))
      .def_prop_ro("tables", array_of(&StepPlan::tables))
      .def_prop_ro("slots", array_of(&StepPlan::slots))
      .def_prop_ro("inverse", array_of(&StepPlan::inverse))
      .def_prop_ro("group_start", array_of(&StepPlan::group_start))
      .def_prop_ro("group", array_of(&StepPlan::group))
      .def_prop_ro("staged", array_of(&StepPlan::staged))
      .def_prop_ro("victim_keys", array_of(&StepPlan::victim_keys))
      .def_prop_ro("victim_tables", array_of(&StepPlan::victim_tables))
      .def_prop_ro("victim_slots", array_of(&StepPlan::victim_slots))
      .def_prop_ro("victim_dirty", array_of(&StepPlan::victim_dirty))
      .def_prop_ro("staged_from", array_of(&StepPlan::staged_from))
      .def_prop_ro("victim_to", array_of(&StepPlan::victim_to))
      .def_prop_ro("fallen_keys", array_of(&StepPlan::fallen_keys))
      .def_prop_ro("fallen_tables", array_of(&StepPlan::fallen_tables))
      .def_prop_ro("fallen_slots", array_of(&StepPlan::fallen_slots))
      .def_prop_ro("fallen_dirty", array_of(&StepPlan::fallen_dirty))
      .def("matches", [](const StepPlan& plan, nb::handle segments) {
        const std::vector<Segment> s = segments_of(segments);
        nb::gil_scoped_release released;
        return plan_matches(plan, s);
      });

  // Carries (missing slots, slots of the tier) to residency/planner.py, which words the message.
  // Never freed: the translator may outlive the interpreter's own objects.
  static PyObject* const no_capacity =
      PyErr_NewException("tiered_embed._native.NoCapacity", PyExc_RuntimeError, nullptr);
  m.attr("NoCapacity") = nb::handle(no_capacity);
  static PyObject* const too_many_held =
      PyErr_NewException("tiered_embed._native.TooManyHeld", PyExc_RuntimeError, nullptr);
  m.attr("TooManyHeld") = nb::handle(too_many_held);
  static PyObject* const planner_failed =
      PyErr_NewException("tiered_embed._native.PlannerFailed", PyExc_RuntimeError, nullptr);
  m.attr("PlannerFailed") = nb::handle(planner_failed);
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const NoCapacity& e) {
      PyErr_SetObject(no_capacity, nb::make_tuple(e.needed, e.num_slots).ptr());
    } catch (const PlannerFailed& e) {
      PyErr_SetString(planner_failed, e.what());
    } catch (const TooManyHeld& e) {
      PyErr_SetObject(too_many_held, nb::make_tuple(e.num_plans).ptr());
    }
  });

  nb::class_<InitialRows>(m, "InitialRows")
      .def(
          "__init__",
          [](InitialRows* self, RecordArray& records, Array1<const uint32_t> tables, uint64_t seed,
             double lo, double scale, int num_threads) {
            new (self) InitialRows{&records,
                                   {tables.data(), tables.data() + tables.size()},
                                   {seed, to_float(lo), to_float(scale)},
                                   num_threads};
          },
          nb::keep_alive<1, 2>(), nb::arg("records"), nb::arg("tables"), nb::arg("seed"),
          nb::arg("lo"), nb::arg("scale"), nb::arg("num_threads"));

  // Every call releases the GIL: a view may wait for the lock while a plan is being made.
  const auto nogil = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<Planner>(m, "Planner")
      .def(
          nb::new_([](const std::vector<std::tuple<int64_t, int64_t>>& tables, int64_t whole_slots,
                      int64_t cached_slots, int64_t overflow_slots, int64_t lower_slots,
                      const std::string& policy, bool backed, int num_partitions, int num_threads) {
            PlannerOptions o;
            for (const auto& [num_rows, first_slot] : tables) {
              o.tables.push_back({num_rows, first_slot});
            }
            o.whole_slots = whole_slots;
            o.cached_slots = cached_slots;
            o.overflow_slots = overflow_slots;
            o.lower_slots = lower_slots;
            o.policy = policy;
            o.backed = backed;
            return without_gil([&] { return make_planner(o, num_partitions, num_threads); });
          }),
          nb::arg("tables"), nb::kw_only(), nb::arg("whole_slots"), nb::arg("cached_slots"),
          nb::arg("overflow_slots"), nb::arg("lower_slots"), nb::arg("policy"), nb::arg("backed"),
          nb::arg("num_partitions"), nb::arg("num_threads"))
      .def("push",
           [](Planner& p, nb::handle segments) {
             const std::vector<Segment> s = segments_of(segments);
             nb::gil_scoped_release released;
             p.push(s);
           })
      .def("plan", &Planner::plan, nb::arg("depth"), nogil)
      .def(
          "plan_now",
          [](Planner& p, nb::handle segments, const InitialRows* initial) {
            const std::vector<Segment> s = segments_of(segments);
            nb::gil_scoped_release released;
            std::shared_ptr<StepPlan> plan = p.plan_now(s);
            if (initial) initial->fill(*plan, &p);
            return plan;
          },
          nb::arg("segments"), nb::arg("initial").none() = nb::none())
      .def("release", &Planner::release, nb::arg("number"), nb::arg("updated"),
           nb::arg("used") = true, nogil)
      .def("cancel", &Planner::cancel, nogil)
      .def(
          "find",
          [](Planner& p, nb::handle segments, int num_threads) {
            const std::vector<Segment> s = segments_of(segments);
            require_countable(s);
            std::vector<int32_t> slots(static_cast<size_t>(num_ids_of(s)));
            {
              nb::gil_scoped_release released;
              p.find(s, slots.data(), num_threads);
            }
            return own(std::move(slots));
          },
          nb::arg("segments"), nb::arg("num_threads"))
      .def("dirty_rows",
           [](Planner& p) {
             ResidentRows rows;
             {
               nb::gil_scoped_release released;
               rows = p.dirty_rows();
             }
             return nb::make_tuple(own(std::move(rows.tables)), own(std::move(rows.keys)),
                                   own(std::move(rows.slots)));
           })
      .def("mark_clean", &Planner::mark_clean, nogil)
      .def(
          "counts",
          [](const Planner& p, const std::optional<std::vector<int64_t>>& used) {
            return list_of(without_gil([&] { return p.counts(used); }));
          },
          nb::arg("used") = nb::none())
      .def("lower_counts",
           [](const Planner& p) { return list_of(without_gil([&] { return p.lower_counts(); })); })
      .def_prop_ro("num_partitions", &Planner::num_partitions)
      .def_prop_ro("first_lower_slot", &Planner::first_lower_slot)
      .def_prop_ro("num_lower_resident", &Planner::num_lower_resident, nogil)
      .def_prop_ro("window_size", &Planner::window_size, nogil)
      .def_prop_ro("num_resident", &Planner::num_resident, nogil)
      .def(
          "holds_for_good",
          [](Planner& planner, nb::handle given, int num_threads) {
            const std::vector<Segment> segments = segments_of(given);
            nb::gil_scoped_release released;
            return planner.holds_for_good(segments, num_threads);
          },
          nb::arg("segments"), nb::arg("num_threads"))
      .def_prop_ro("all_resident", &Planner::all_resident, nogil)
      .def_prop_ro("overhead_bytes", &Planner::overhead_bytes, nogil);

  m.def(
      "name_missing",
      [](nb::handle segments, Array1<int32_t> slots) {
        const std::vector<Segment> s = segments_of(segments);
        if (num_ids_of(s) != static_cast<int64_t>(slots.size())) {
          throw std::invalid_argument("ids and slots differ in number");
        }
        Rows rows;
        {
          nb::gil_scoped_release released;
          rows = name_missing(s, slots.data());
        }
        return nb::make_tuple(own(std::move(rows.tables)), own(std::move(rows.keys)));
      },
      nb::arg("segments"), nb::arg("slots").noconvert());

  m.def(
      "first_bad_id",
      [](Ids ids, int64_t num_rows, int num_threads) {
        nb::gil_scoped_release released;
        return first_bad_id(ids.data(), static_cast<int64_t>(ids.size()), num_rows, num_threads);
      },
      nb::arg("ids"), nb::arg("num_rows"), nb::arg("num_threads") = 1);

  m.def("bag_bounds", [](Ids offsets, int64_t num_ids, bool complete) -> nb::object {
    std::vector<int64_t> bounds;
    const bool good = without_gil([&] {
      bounds.reserve(offsets.size() + 1);
      bounds.assign(offsets.data(), offsets.data() + offsets.size());
      if (!complete) bounds.push_back(num_ids);
      return are_bag_bounds(bounds.data(), static_cast<int64_t>(bounds.size()), num_ids);
    });
    if (!good) return nb::none();
    return nb::cast(own(std::move(bounds)));
  });
}

}  // namespace te
