// Array types shared by the bindings: C-contiguous, on the CPU, from NumPy or any DLPack producer.
// An array of another dtype is converted, which is a copy. So an argument that a function writes to
// is bound with noconvert(): the result would be in the copy, and nobody would see it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

namespace te {

namespace nb = nanobind;

template <typename T>
using Array1 = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Array2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using View = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

// A read-only NumPy view of memory that `owner` keeps alive.
template <typename T, typename Allocator>
View<const T> view(const std::vector<T, Allocator>& v, nb::handle owner) {
  return View<const T>(v.data(), {v.size()}, owner);
}

// A NumPy array that owns a vector.
template <typename T>
View<T> own(std::vector<T> v) {
  auto held = std::make_unique<std::vector<T>>(std::move(v));
  nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  std::vector<T>* const owned = held.release();
  return View<T>(owned->data(), {owned->size()}, owner);
}

inline void check_rows(size_t slots, size_t rows) {
  if (slots != rows) throw std::invalid_argument("slots and rows differ in number");
}

inline void check_dim(size_t columns, int64_t dim) {
  if (static_cast<int64_t>(columns) != dim) throw std::invalid_argument("rows differ in dim");
}

void bind_segments(nb::module_& m);
void bind_residency(nb::module_& m);
void bind_replay(nb::module_& m);
void bind_records(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_row_formats(nb::module_& m);
void bind_write_buffer(nb::module_& m);
void bind_process(nb::module_& m);

}  // namespace te
