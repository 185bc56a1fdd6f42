// Cache-line aligned memory, not initialised: pages that are never touched cost nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bitnet {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  // `huge`: let Linux back large buffers with huge pages. Not for memory that fills up slowly and in many
  // places: a huge page is resident as a whole.
  explicit Buffer(std::size_t size, bool huge = true) : size_(size) {
    // 2 MiB alignment lets Linux back weights with huge pages: fewer TLB misses when they stream.
    constexpr std::size_t kHugePage = std::size_t{1} << 21;
    const std::size_t bytes = size * sizeof(T);
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (rounded == 0) return;
#if defined(_WIN32)
    data_ = static_cast<T*>(_aligned_malloc(rounded, alignment));
#else
    data_ = static_cast<T*>(std::aligned_alloc(alignment, rounded));
#endif
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Whole huge pages only: a last one that is half used would cost its other half in memory.
    if (huge && alignment == kHugePage) madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
#if defined(_WIN32)
    _aligned_free(data_);
#else
    std::free(data_);
#endif
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

  // Room for at least `size` elements; what was held is lost when it grows.
  T* reserve(std::size_t size) {
    if (size > size_) *this = Buffer(size);
    return data_;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace bitnet
