// An array in its own anonymous mapping: address space is reserved at once, memory is taken by the
// kernel page by page on first touch, and the base never moves.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

#include "core/check.h"

namespace te {

template <typename T>
class VirtualArray {
  static_assert(std::is_trivially_copyable_v<T>, "zero bytes must be a valid T");

 public:
  VirtualArray() = default;
  // Reserves room for `capacity` zeroed elements. Throws std::bad_alloc when the address space
  // cannot be had.
  explicit VirtualArray(size_t capacity) : capacity_(capacity) {
    if (capacity == 0) return;
    void* p = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(p);
    // Rows are visited at random: without huge pages most of the time goes into TLB misses.
    if (bytes() >= (size_t{8} << 20)) madvise(p, bytes(), MADV_HUGEPAGE);
  }
  ~VirtualArray() {
    if (data_ != nullptr) munmap(data_, bytes());
  }
  VirtualArray(const VirtualArray&) = delete;
  VirtualArray& operator=(const VirtualArray&) = delete;
  VirtualArray(VirtualArray&& other) noexcept : data_(other.data_), capacity_(other.capacity_) {
    other.data_ = nullptr;
    other.capacity_ = 0;
  }
  VirtualArray& operator=(VirtualArray&& other) noexcept {
    T* d = data_;
    size_t c = capacity_;
    data_ = other.data_;
    capacity_ = other.capacity_;
    other.data_ = d;
    other.capacity_ = c;
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  // REQUIRES: i < capacity().
  T& operator[](size_t i) {
    TE_CHECK(i < capacity_, "the element exists");
    return data_[i];
  }
  const T& operator[](size_t i) const {
    TE_CHECK(i < capacity_, "the element exists");
    return data_[i];
  }
  size_t capacity() const { return capacity_; }
  size_t bytes() const { return capacity_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t capacity_ = 0;
};

// A vector on anonymous pages: growth moves pages (mremap), never copies, so that capacity beyond
// size() costs address space only. The base may move when it grows.
template <typename T>
class PagedVector {
  static_assert(std::is_trivially_copyable_v<T>, "elements are moved as bytes");

 public:
  PagedVector() = default;
  ~PagedVector() {
    if (data_ != nullptr) munmap(data_, capacity_ * sizeof(T));
  }
  PagedVector(const PagedVector&) = delete;
  PagedVector& operator=(const PagedVector&) = delete;

  void push_back(const T& value) {
    if (size_ == capacity_) reserve(capacity_ == 0 ? 1024 : capacity_ * 2);
    data_[size_++] = value;
  }
  void reserve(size_t capacity) {
    if (capacity <= capacity_) return;
    const size_t bytes = capacity * sizeof(T);
    void* p = data_ == nullptr ? map(bytes) : remap(data_, capacity_ * sizeof(T), bytes);
    if (p == MAP_FAILED) throw std::bad_alloc();
    if (bytes >= (size_t{8} << 20)) madvise(p, bytes, MADV_HUGEPAGE);
    data_ = static_cast<T*>(p);
    capacity_ = capacity;
  }
  // REQUIRES: i < size().
  T& operator[](size_t i) {
    TE_CHECK(i < size_, "the element exists");
    return data_[i];
  }
  const T& operator[](size_t i) const {
    TE_CHECK(i < size_, "the element exists");
    return data_[i];
  }
  T* data() { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  // Both return MAP_FAILED without memory.
  static void* map(size_t bytes) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
  }
  static void* remap(void* old, size_t old_bytes, size_t bytes) {
#if defined(__SANITIZE_THREAD__)
    // ThreadSanitizer sees mmap and munmap, but not mremap: when another thread's vector grows into
    // the addresses that this one leaves, it would report a race between the two.
    void* p = map(bytes);
    if (p == MAP_FAILED) return p;
    std::memcpy(p, old, old_bytes);
    munmap(old, old_bytes);
    return p;
#else
    return mremap(old, old_bytes, bytes, MREMAP_MAYMOVE);
#endif
  }

  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace te
