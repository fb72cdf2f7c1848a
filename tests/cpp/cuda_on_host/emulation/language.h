// The part of CUDA's language that kernel sources use, for a host compiler.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define RNNFUSED_UNROLL
#define RNNFUSED_NO_UNROLL
#define RNNFUSED_ARCH 0

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace rnnfused {
namespace emulation {

// The special registers of the running thread.
struct Registers {
  uint3 thread, block, block_size, grid_size;
};
// __thread and not thread_local, which would look for a constructor to run at every access.
extern __thread const Registers* registers;

}  // namespace emulation
}  // namespace rnnfused

#define threadIdx (::rnnfused::emulation::registers->thread)
#define blockIdx (::rnnfused::emulation::registers->block)
#define blockDim (::rnnfused::emulation::registers->block_size)
#define gridDim (::rnnfused::emulation::registers->grid_size)
