// The cells' maths by the hardware's approximations, for layers whose products are of 16 bits or TF32: the
// cells are templates on their number and take this one as it is. ex2.approx and rcp.approx err by 2 ulp of
// float.
#pragma once

#include "core/math.h"
#include "cuda/ptx.cuh"

namespace rnnfused::cuda {

struct Approx {
  float value;

  Approx() = default;
  __device__ __forceinline__ Approx(float x) : value(x) {}
};

__device__ __forceinline__ float plain(Approx x) { return x.value; }
__device__ __forceinline__ float plain(float x) { return x; }

__device__ __forceinline__ Approx operator-(Approx a) { return -a.value; }
__device__ __forceinline__ bool operator<(Approx a, Approx b) { return a.value < b.value; }
__device__ __forceinline__ bool operator<=(Approx a, Approx b) { return a.value <= b.value; }
__device__ __forceinline__ Approx operator+(Approx a, Approx b) { return a.value + b.value; }
__device__ __forceinline__ Approx operator-(Approx a, Approx b) { return a.value - b.value; }
__device__ __forceinline__ Approx operator*(Approx a, Approx b) { return a.value * b.value; }
__device__ __forceinline__ Approx fma(Approx a, Approx b, Approx c) {
  return __builtin_fmaf(a.value, b.value, c.value);
}

__device__ __forceinline__ Approx sigmoid(Approx x) {
  return reciprocal_approx(1.0f + exp2_approx(-1.44269504f * x.value));
}

// 1 - 2 / (1 + e^2x), which errs by 2e-7; below 0.1 that would be much of the result, and x - x^3 / 3 + 2 x^5
// / 15 is closer. Relative error at most 3e-6.
__device__ __forceinline__ Approx tanh(Approx x) {
  const float square = x.value * x.value;
  const float small =
      __builtin_fmaf(x.value * square, __builtin_fmaf(square, 0.133333333f, -0.333333333f), x.value);
  const float large =
      __builtin_fmaf(-2.0f, reciprocal_approx(1.0f + exp2_approx(2.88539008f * x.value)), 1.0f);
  return square < 0.01f ? small : large;
}

}  // namespace rnnfused::cuda

namespace rnnfused::RNNFUSED_ISA {

// What core/math.h makes of values that are there (gradients, relu) it makes of these, too.
template <>
struct Lanes<cuda::Approx> {
  using Scalar = float;
  static constexpr int count = 1;
};

}  // namespace rnnfused::RNNFUSED_ISA
