#include <stdexcept>

#include "bindings/arrays.h"
#include "core/write_buffer.h"

namespace te {
namespace {

using Tables = Array1<const uint16_t>;
using Rows = Array1<const int64_t>;

void require_same_length(const Tables& tables, const Rows& rows, size_t num_records) {
  if (tables.size() != rows.size() || rows.size() != num_records) {
    throw std::invalid_argument("tables, rows and records differ in length");
  }
}

}  // namespace

void bind_write_buffer(nb::module_& m) {
  nb::class_<WriteBuffer>(m, "WriteBuffer")
      .def(nb::init<int64_t, int64_t>(), nb::arg("record_bytes"), nb::arg("portion_bytes"))
      .def("add",
           [](WriteBuffer& b, Tables tables, Rows rows, Array2<const uint8_t> records) {
             require_same_length(tables, rows, records.shape(0));
             nb::gil_scoped_release nogil;
             b.add(tables.data(), rows.data(), records.data(), static_cast<int64_t>(rows.size()));
           })
      .def(
          "read",
          [](const WriteBuffer& b, Tables tables, Rows rows, Array2<uint8_t> out,
             Array1<bool> found) {
            require_same_length(tables, rows, out.shape(0));
            require_same_length(tables, rows, found.size());
            nb::gil_scoped_release nogil;
            b.read(tables.data(), rows.data(), static_cast<int64_t>(rows.size()), out.data(),
                   found.data());
          },
          nb::arg("tables"), nb::arg("rows"), nb::arg("out").noconvert(),
          nb::arg("found").noconvert())
      .def("take",
           [](WriteBuffer& b) -> nb::object {
             BufferedRows taken;
             bool any;
             {
               nb::gil_scoped_release nogil;
               any = b.take(&taken);
             }
             if (!any) return nb::none();
             return nb::make_tuple(own(std::move(taken.tables)), own(std::move(taken.rows)),
                                   own(std::move(taken.records)));
           })
      .def("hold", &WriteBuffer::hold, nb::call_guard<nb::gil_scoped_release>())
      .def("resume", &WriteBuffer::resume, nb::call_guard<nb::gil_scoped_release>())
      .def("arrived", &WriteBuffer::arrived, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("bytes", &WriteBuffer::bytes, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace te
