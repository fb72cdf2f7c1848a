// Global memory: guarded allocations, buffers whose accesses are checked, and the accessor that checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>

#include "emulation/fault.h"
#include "emulation/shared.h"

namespace rnnfused {
namespace emulation {

struct Thread;
class Shadow;

enum class AccessMode { read, write };
enum class Contents {
  written,
  unwritten
};  // whether reading the bytes makes sense before a kernel wrote them

// Bytes that the emulator knows by name. Registered from construction to destruction.
class GlobalMemory {
 public:
  // Somebody else's bytes.
  GlobalMemory(const void* begin, size_t bytes, std::string name, Contents contents);
  // New ones, all 0xff (NaN), with inaccessible pages before and after: they end where those after begin,
  // but for what it takes to begin at a multiple of 16 bytes.
  GlobalMemory(size_t bytes, std::string name, Contents contents);
  ~GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;

  unsigned char* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  void set_contents(Contents contents);
  bool guards(const void* address) const;  // whether it lies in the inaccessible pages

  static GlobalMemory* of(const void* address);  // registered, or null
  static void start_launch(bool races);          // a launch waits for all accesses before it
  static void end_launch();                      // a fault where somebody wrote beside a guarded allocation

  // Checks; the caller moves the bytes.
  void access(const Thread& thread, const void* address, size_t bytes, Site site, AccessMode mode,
              bool atomic);

 private:
  unsigned char* begin_;
  size_t bytes_;
  std::string name_;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  std::unique_ptr<Shadow> shadow_;
  bool accessed_ = false;

  void check_surroundings() const;
};

// Checks an access that may be to registered memory.
void check_global(Thread& thread, const void* address, size_t bytes, Site site, AccessMode mode,
                  bool atomic = false);

// A guarded array for tests.
template <class T>
class GlobalBuffer {
 public:
  explicit GlobalBuffer(size_t count, std::string name = "buffer", Contents contents = Contents::written)
      : count_(count), memory_(new GlobalMemory(count * sizeof(T), std::move(name), contents)) {}
  T* data() const { return reinterpret_cast<T*>(memory_->begin()); }
  T* begin() const { return data(); }
  T* end() const { return data() + count_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data()[i]; }
  GlobalMemory& memory() const { return *memory_; }

 private:
  size_t count_;
  std::unique_ptr<GlobalMemory> memory_;
};

struct GlobalPlace {
  unsigned char* address;
  GlobalMemory* memory;  // that the pointer was made into
  void read(void* value, size_t bytes, Site site) const;
  void write(const void* value, size_t bytes, Site site) const;
};

}  // namespace emulation

namespace cuda {

// A pointer into global memory that several blocks exchange data through: on the device a plain T*.
template <class T>
class Global {
  static_assert(sizeof(T) >= 2, "the race detector tells two bytes apart, not single ones");
  using Index = emulation::Index;

 public:
  using Element = emulation::Element<T, emulation::GlobalPlace>;

  Global() = default;
  Global(T* pointer, emulation::Site site = emulation::Site::here())
      : Global(pointer, emulation::GlobalMemory::of(pointer), site) {}
  Global(T* pointer, emulation::GlobalMemory* memory, emulation::Site site)
      : pointer_(pointer), memory_(memory), site_(site) {}
  template <class U, class = std::enable_if_t<std::is_same<const U, T>::value>>
  Global(const Global<U>& other) : Global(other.get(), other.memory(), other.site()) {}

  Element operator[](Index i) const { return Element(place(i.value), i.site); }
  Element operator*() const { return Element(place(0), site_); }
  Global operator+(Index i) const { return Global(pointer_ + i.value, memory_, i.site); }
  Global operator-(Index i) const { return Global(pointer_ - i.value, memory_, i.site); }
  Global& operator+=(Index i) { return *this = *this + i; }
  Global& operator-=(Index i) { return *this = *this - i; }
  std::ptrdiff_t operator-(const Global& other) const { return pointer_ - other.pointer_; }
  bool operator==(const Global& other) const { return pointer_ == other.pointer_; }
  bool operator!=(const Global& other) const { return pointer_ != other.pointer_; }
  explicit operator bool() const { return pointer_ != nullptr; }

  T* get() const { return pointer_; }
  emulation::GlobalMemory* memory() const { return memory_; }
  emulation::Site site() const { return site_; }

 private:
  emulation::GlobalPlace place(std::ptrdiff_t i) const {
    using Bytes = unsigned char;
    return {reinterpret_cast<Bytes*>(const_cast<std::remove_const_t<T>*>(pointer_ + i)), memory_};
  }

  T* pointer_ = nullptr;
  emulation::GlobalMemory* memory_ = nullptr;
  emulation::Site site_;
};

// The same bytes as elements of another type.
template <class U, class T>
Global<U> global_cast(const Global<T>& pointer) {
  return Global<U>(reinterpret_cast<U*>(pointer.get()), pointer.memory(), pointer.site());
}

}  // namespace cuda
}  // namespace rnnfused
