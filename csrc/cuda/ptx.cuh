// Every hardware instruction that the kernels use, by name: the only place with inline PTX and intrinsics.
// tests/cpp/cuda_on_host/cuda/ptx.cuh implements the same names for a host compiler.
#pragma once

#include <cstddef>
#include <cstdint>

#define RNNFUSED_UNROLL _Pragma("unroll")

// The architecture being compiled for, and 0 in host code, which must take the newest path.
#if defined(__CUDA_ARCH__)
#define RNNFUSED_ARCH __CUDA_ARCH__
#else
#define RNNFUSED_ARCH 0
#endif

namespace rnnfused {
namespace cuda {

// ---- 16-bit floating point. Own types: CUDA's headers collide with those of the host's emulation.

struct alignas(2) Half {
  uint16_t bits;
};
struct alignas(2) BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
// cvt.f32.f16
__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
// The upper half of a float: no instruction but a shift.
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(uint32_t(value.bits) << 16);
}

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
// cvt.rn.f16.f32
template <>
__device__ __forceinline__ Half from_float<Half>(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
// cvt.rn.bf16.f32, sm_80
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

// Two neighbours of a 16-bit matrix in one register, the first in the lower half: an operand of mma_sync.
template <class T>
__device__ __forceinline__ uint32_t pack(T low, T high) {
  return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}
template <class T>
__device__ __forceinline__ T unpack_low(uint32_t pair) {
  return T{uint16_t(pair)};
}
template <class T>
__device__ __forceinline__ T unpack_high(uint32_t pair) {
  return T{uint16_t(pair >> 16)};
}
// The same from two floats, rounded.
template <class T>
__device__ __forceinline__ uint32_t pack_floats(float low, float high) {
  return pack(from_float<T>(low), from_float<T>(high));
}

// ---- Shared memory

// A pointer into shared memory: on the host a checked one. Read through a typed variable, write `p[i] = x`,
// and say `p + i`, never `&p[i]`.
template <class T>
using Shared = T*;

// `offset` bytes into the block's dynamic shared memory.
template <class T>
__device__ __forceinline__ Shared<T> shared_memory(size_t offset) {
  extern __shared__ __align__(128) unsigned char rnnfused_shared_memory[];
  return reinterpret_cast<T*>(rnnfused_shared_memory + offset);
}

// The same bytes as elements of another type.
template <class U, class T>
__device__ __forceinline__ U* shared_cast(T* pointer) {
  return reinterpret_cast<U*>(pointer);
}

// ---- The block

// bar.sync 0 (barrier.sync.aligned)
__device__ __forceinline__ void block_sync() { __syncthreads(); }

}  // namespace cuda
}  // namespace rnnfused
