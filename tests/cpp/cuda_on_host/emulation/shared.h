// Pointers into a block's dynamic shared memory that check every access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/fault.h"
#include "emulation/language.h"

namespace rnnfused {
namespace emulation {

struct Block;

// An index with the line that used it: overloaded operators take no further arguments.
struct Index {
  std::ptrdiff_t value;
  Site site;
  template <class I, class = std::enable_if_t<std::is_integral<I>::value>>
  Index(I index, Site here = Site::here()) : value(std::ptrdiff_t(index)), site(here) {}
};

void read_shared(Block* block, std::ptrdiff_t offset, void* value, size_t bytes, Site site);
void write_shared(Block* block, std::ptrdiff_t offset, const void* value, size_t bytes, Site site);

// An element as `p[i]`. Only the unnamed one converts, so that `auto x = p[i]` is no silent second access.
template <class T, class Memory>
class Element {
  using Value = std::remove_const_t<T>;

 public:
  Element(Memory memory, Site site) : memory_(memory), site_(site) {}
  Element(const Element&) = default;

  operator Value() && { return load(); }
  Value operator=(const Value& value) && {
    static_assert(!std::is_const<T>::value, "a write through a pointer to const");
    memory_.write(&value, sizeof value, site_);
    return value;
  }
  Value operator=(Element&& other) && { return std::move(*this) = other.load(); }
  template <class U>
  Value operator+=(const U& other) && {
    return std::move(*this) = Value(load() + other);
  }
  template <class U>
  Value operator-=(const U& other) && {
    return std::move(*this) = Value(load() - other);
  }
  template <class U>
  Value operator*=(const U& other) && {
    return std::move(*this) = Value(load() * other);
  }

 private:
  Value load() const {
    Value value;
    memory_.read(&value, sizeof value, site_);
    return value;
  }
  Memory memory_;
  Site site_;
};

struct SharedPlace {
  Block* block;
  std::ptrdiff_t offset;
  void read(void* value, size_t bytes, Site site) const { read_shared(block, offset, value, bytes, site); }
  void write(const void* value, size_t bytes, Site site) const {
    write_shared(block, offset, value, bytes, site);
  }
};

}  // namespace emulation

namespace cuda {

// A pointer into shared memory: on the device a plain T*. Read through a typed variable, write `p[i] = x`,
// and say `p + i`, never `&p[i]`.
template <class T>
class Shared {
  static_assert(sizeof(T) >= 2, "the race detector tells two bytes apart, not single ones");
  static_assert(std::is_trivially_copyable<T>::value, "shared memory holds plain data");
  using Index = emulation::Index;

 public:
  using Element = emulation::Element<T, emulation::SharedPlace>;

  Shared() = default;
  Shared(emulation::Block* block, std::ptrdiff_t offset, emulation::Site site)
      : block_(block), offset_(offset), site_(site) {}
  template <class U, class = std::enable_if_t<std::is_same<const U, T>::value>>
  Shared(const Shared<U>& other) : Shared(other.block(), other.offset(), other.site()) {}

  Element operator[](Index i) const { return Element({block_, at(i.value)}, i.site); }
  Element operator*() const { return Element({block_, offset_}, site_); }

  Shared operator+(Index i) const { return Shared(block_, at(i.value), i.site); }
  Shared operator-(Index i) const { return Shared(block_, at(-i.value), i.site); }
  Shared& operator+=(Index i) { return *this = *this + i; }
  Shared& operator-=(Index i) { return *this = *this - i; }
  std::ptrdiff_t operator-(const Shared& other) const {
    return (offset_ - other.offset_) / std::ptrdiff_t(sizeof(T));
  }
  bool operator==(const Shared& other) const { return block_ == other.block_ && offset_ == other.offset_; }
  bool operator!=(const Shared& other) const { return !(*this == other); }
  bool operator<(const Shared& other) const { return offset_ < other.offset_; }

  emulation::Block* block() const { return block_; }
  std::ptrdiff_t offset() const { return offset_; }
  emulation::Site site() const { return site_; }

 private:
  std::ptrdiff_t at(std::ptrdiff_t i) const { return offset_ + i * std::ptrdiff_t(sizeof(T)); }

  emulation::Block* block_ = nullptr;
  std::ptrdiff_t offset_ = 0;
  emulation::Site site_;
};

}  // namespace cuda

namespace emulation {

Block* own_block();

}  // namespace emulation

namespace cuda {

// `offset` bytes into the block's dynamic shared memory.
template <class T>
Shared<T> shared_memory(size_t offset, emulation::Site site = emulation::Site::here()) {
  return Shared<T>(emulation::own_block(), std::ptrdiff_t(offset), site);
}

// A pointer into the shared memory of any block of the cluster.
template <class T>
using Remote = Shared<T>;

// The same bytes as elements of another type.
template <class U, class T>
Shared<U> shared_cast(const Shared<T>& pointer) {
  return Shared<U>(pointer.block(), pointer.offset(), pointer.site());
}
template <class U, class T>
Remote<U> remote_cast(const Remote<T>& pointer) {
  return shared_cast<U>(pointer);
}

}  // namespace cuda
}  // namespace rnnfused
