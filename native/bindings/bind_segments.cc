#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "bindings/segments.h"

namespace te {
namespace {

using Ids = Array1<const int64_t>;

// One feature of a jagged batch: which key it reads, and its table.
struct JaggedFeature {
  int64_t key;
  int32_t table;     // in its pool
  int64_t num_rows;  // -1: any int64 is a row id
  std::optional<int64_t> padding;
};

// How the keys of a jagged batch go to the features of each pool. All keys have the same number of
// bags; their ids follow each other, and so do their bags.
class JaggedLayout {
 public:
  using Pools =
      std::vector<std::vector<std::tuple<int64_t, int32_t, int64_t, std::optional<int64_t>>>>;

  JaggedLayout(int64_t num_keys, const Pools& pools) : num_keys_(num_keys) {
    if (num_keys < 1) throw std::invalid_argument("no keys");
    for (const auto& pool : pools) {
      auto& mine = pools_.emplace_back();
      for (const auto& [key, table, num_rows, padding] : pool) {
        if (key < 0 || key >= num_keys) throw std::invalid_argument("no such key");
        mine.push_back({key, table, num_rows, padding});
      }
    }
  }

  // Per pool, its part of the batch and (F * B + 1) where its bags begin in it; None where the
  // bounds make no bags, or an id is outside its table or is its padding row. `values` are not
  // copied.
  nb::object split(const nb::object& values, const Ids& bounds) const {
    Ids ids;
    if (!nb::try_cast<Ids>(values, ids, false)) {
      throw nb::type_error("ids must be a contiguous int64 array on the CPU");
    }
    const int64_t num_ids = static_cast<int64_t>(ids.size());
    const int64_t num_bags = static_cast<int64_t>(bounds.size()) - 1;
    if (num_bags < 0 || num_bags % num_keys_ != 0) return nb::none();
    std::vector<std::vector<Segment>> parts(pools_.size());
    std::vector<std::vector<int64_t>> starts(pools_.size());
    bool good;
    {
      nb::gil_scoped_release released;
      good = are_bag_bounds(bounds.data(), num_bags + 1, num_ids);
      for (size_t p = 0; p < pools_.size() && good; ++p) {
        good = split_pool(pools_[p], ids.data(), bounds.data(), num_bags / num_keys_, &parts[p],
                          &starts[p]);
      }
    }
    if (!good) return nb::none();
    nb::list segments, offsets;
    for (size_t p = 0; p < pools_.size(); ++p) {
      segments.append(nb::cast(Segments(std::move(parts[p]), values)));
      offsets.append(nb::cast(own(std::move(starts[p]))));
    }
    return nb::make_tuple(segments, offsets);
  }

 private:
  static bool split_pool(const std::vector<JaggedFeature>& features, const int64_t* values,
                         const int64_t* bounds, int64_t bags, std::vector<Segment>* parts,
                         std::vector<int64_t>* starts) {
    parts->reserve(features.size());
    starts->resize(features.size() * static_cast<size_t>(bags) + 1);
    int64_t* out = starts->data();
    int64_t before = 0;
    for (const JaggedFeature& f : features) {
      const int64_t* mine = bounds + f.key * bags;
      const int64_t first = mine[0], num_ids = mine[bags] - first;
      const int64_t* ids = values + first;
      if (first_bad_id(ids, num_ids, f.num_rows) >= 0) return false;
      if (f.padding && std::find(ids, ids + num_ids, *f.padding) != ids + num_ids) return false;
      parts->push_back({f.table, ids, num_ids});
      for (int64_t b = 0; b < bags; ++b) *out++ = mine[b] - first + before;
      before += num_ids;
    }
    *out = before;
    return true;
  }

  int64_t num_keys_;
  std::vector<std::vector<JaggedFeature>> pools_;
};

}  // namespace

Segments Segments::copy() const {
  auto ids = std::make_unique<std::vector<int64_t>>();
  ids->reserve(static_cast<size_t>(num_ids()));
  std::vector<Segment> parts = parts_;
  for (Segment& s : parts) {
    const int64_t* from = s.ids;
    s.ids = ids->data() + ids->size();  // it never grows beyond what it reserved
    ids->insert(ids->end(), from, from + s.num_ids);
  }
  nb::capsule owner(ids.release(),
                    [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
  return Segments(std::move(parts), std::move(owner));
}

std::vector<Segment> segments_of(nb::handle given) {
  if (nb::isinstance<Segments>(given)) return nb::cast<const Segments&>(given).parts();
  std::vector<Segment> out;
  for (nb::handle item : nb::cast<nb::list>(given)) {
    const nb::tuple pair = nb::cast<nb::tuple>(item);
    // No conversion: a converted copy would die here, and the segment points into it.
    Ids ids;
    if (!nb::try_cast<Ids>(pair[1], ids, false)) {
      throw nb::type_error("ids must be a contiguous int64 array on the CPU");
    }
    out.push_back({nb::cast<int32_t>(pair[0]), ids.data(), static_cast<int64_t>(ids.size())});
  }
  return out;
}

namespace {

// (table, its ids as a view that keeps `owner` alive).
nb::tuple part_of(const Segment& segment, nb::handle owner) {
  const View<const int64_t> ids(segment.ids, {static_cast<size_t>(segment.num_ids)}, owner);
  return nb::make_tuple(segment.table, nb::cast(ids));
}

}  // namespace

void bind_segments(nb::module_& m) {
  nb::class_<Segments>(m, "Segments")
      .def(
          "__init__",
          [](Segments* self, const nb::list& given) {
            // The list could change; its arrays, held by a tuple, stay.
            new (self) Segments(segments_of(given), nb::tuple(given));
          },
          nb::arg("segments"))
      .def("copy", &Segments::copy)
      .def_prop_ro("num_ids", &Segments::num_ids)
      .def("part",
           [](nb::handle_t<Segments> self, size_t i) {
             const std::vector<Segment>& parts = nb::cast<const Segments&>(self).parts();
             if (i >= parts.size()) throw nb::index_error("no such part");
             return part_of(parts[i], self);
           })
      .def("parts", [](nb::handle_t<Segments> self) {
        nb::list out;
        for (const Segment& s : nb::cast<const Segments&>(self).parts()) {
          out.append(part_of(s, self));
        }
        return out;
      });

  nb::class_<JaggedLayout>(m, "JaggedLayout")
      .def(nb::init<int64_t, const JaggedLayout::Pools&>(), nb::arg("num_keys"), nb::arg("pools"))
      .def("split", &JaggedLayout::split, nb::arg("values"), nb::arg("bounds"));
}

}  // namespace te
