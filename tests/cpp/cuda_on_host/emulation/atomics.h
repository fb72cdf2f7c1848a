// Loads, stores and additions through which blocks synchronise in global memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/global.h"

namespace rnnfused {
namespace emulation {

enum class Order { relaxed, synchronising };  // acquire on loads, release on stores, both on additions

void load_word(const void* address, void* value, size_t bytes, Order order, Site site);
void store_word(void* address, const void* value, size_t bytes, Order order, Site site);
uint32_t add_word(uint32_t* address, uint32_t value, Order order, Site site);
void fence(Site site);
void poll_again(Site site);
void polled(Site site);
[[noreturn]] void trap_at(Site site);

template <class T>
constexpr bool is_word = (sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable<T>::value;

template <class T>
std::remove_const_t<T> load(const cuda::Global<T>& at, Order order, Site site) {
  static_assert(is_word<T>, "a word of 32 or 64 bits");
  std::remove_const_t<T> value;
  load_word(at.get(), &value, sizeof value, order, site);
  return value;
}
template <class T>
void store(const cuda::Global<T>& at, T value, Order order, Site site) {
  static_assert(is_word<T>, "a word of 32 or 64 bits");
  store_word(at.get(), &value, sizeof value, order, site);
}

// Of a pointer or an accessor.
template <class T>
cuda::Global<T> global(T* pointer) {
  return cuda::Global<T>(pointer);
}
template <class T>
const cuda::Global<T>& global(const cuda::Global<T>& accessor) {
  return accessor;
}

}  // namespace emulation

namespace cuda {

template <class Pointer>
auto load_acquire(const Pointer& at, emulation::Site site = emulation::Site::here()) {
  return emulation::load(emulation::global(at), emulation::Order::synchronising, site);
}
template <class Pointer>
auto load_relaxed(const Pointer& at, emulation::Site site = emulation::Site::here()) {
  return emulation::load(emulation::global(at), emulation::Order::relaxed, site);
}
template <class Pointer, class T>
void store_release(const Pointer& at, T value, emulation::Site site = emulation::Site::here()) {
  emulation::store(emulation::global(at), value, emulation::Order::synchronising, site);
}
template <class Pointer, class T>
void store_relaxed(const Pointer& at, T value, emulation::Site site = emulation::Site::here()) {
  emulation::store(emulation::global(at), value, emulation::Order::relaxed, site);
}
// Returns what was there before; acquires and releases.
template <class Pointer>
uint32_t atomic_add(const Pointer& at, uint32_t value, emulation::Site site = emulation::Site::here()) {
  return emulation::add_word(emulation::global(at).get(), value, emulation::Order::synchronising, site);
}
template <class Pointer>
uint32_t atomic_add_relaxed(const Pointer& at, uint32_t value,
                            emulation::Site site = emulation::Site::here()) {
  return emulation::add_word(emulation::global(at).get(), value, emulation::Order::relaxed, site);
}
// Orders relaxed accesses before and after it, as the acquire and release forms would.
inline void fence_gpu(emulation::Site site = emulation::Site::here()) { emulation::fence(site); }

// Every spin goes through here.
template <class Condition>
void poll_until(Condition&& condition, emulation::Site site = emulation::Site::here()) {
  while (!condition()) emulation::poll_again(site);
  emulation::polled(site);
}
[[noreturn]] inline void trap(emulation::Site site = emulation::Site::here()) { emulation::trap_at(site); }

}  // namespace cuda
}  // namespace rnnfused
