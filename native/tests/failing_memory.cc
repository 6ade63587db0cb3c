#include "tests/failing_memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdarg>
#include <cstdlib>

namespace te::stress {
namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> left{0};  // allocations until one fails
std::atomic<bool> failed{false};
std::atomic<bool> goes_on_failing{false};
std::atomic<bool> all_fail{false};

bool fails() {
  if (!counting.load()) return false;
  if (left.fetch_sub(1) == 1) {
    failed = true;
    if (goes_on_failing) all_fail = true;
    return true;
  }
  return all_fail.load();
}

void* allocate(size_t size, size_t alignment) {
  if (fails()) throw std::bad_alloc();
  // Rounded up, as aligned_alloc wants it.
  void* p = alignment == 0
                ? std::malloc(size == 0 ? 1 : size)
                : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void FailingMemory::arm(int64_t number, bool for_good) {
  left = number;
  goes_on_failing = for_good;
  all_fail = false;
  failed = false;
}

bool FailingMemory::has_failed() { return failed.load(); }

FailingMemory::Inside::Inside() { counting = true; }
FailingMemory::Inside::~Inside() {
  counting = false;
  all_fail = false;
}

}  // namespace te::stress

void* operator new(size_t size) { return te::stress::allocate(size, 0); }
void* operator new[](size_t size) { return te::stress::allocate(size, 0); }
void* operator new(size_t size, std::align_val_t alignment) {
  return te::stress::allocate(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return te::stress::allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }

// The linker puts these before the calls of this program's own code (CMakeLists.txt).
extern "C" {
void* __real_mmap(void*, size_t, int, int, int, off_t);
void* __real_mremap(void*, size_t, size_t, int, ...);

void* __wrap_mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  if (te::stress::fails()) return MAP_FAILED;
  return __real_mmap(address, size, protection, flags, file, offset);
}
void* __wrap_mremap(void* old, size_t old_size, size_t size, int flags, ...) {
  if (te::stress::fails()) return MAP_FAILED;
  return __real_mremap(old, old_size, size, flags);
}
}
