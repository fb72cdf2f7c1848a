// A few neighbouring units of a row: loaded and stored at once, worked on in the compute type.
#pragma once

#include "core/scalars.h"
#include "cuda/layer.h"
#include "cuda/ptx.cuh"

namespace rnnfused::cuda {

template <class T>
__device__ Compute<T> widen(T x) {
  if constexpr (kNarrow<T>) {
    return to_float(x);
  } else {
    return x;
  }
}

template <class T>
__device__ T narrow(Compute<T> x) {
  if constexpr (kNarrow<T>) {
    return from_float<T>(x);
  } else {
    return x;
  }
}

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];
};

// p is a multiple of N * sizeof(T).
template <int N, class T>
__device__ void load(const T* p, Compute<T> (&out)[N]) {
  const auto pack = *reinterpret_cast<const Pack<T, N>*>(aligned<sizeof(Pack<T, N>)>(p));
  RNNFUSED_UNROLL
  for (int i = 0; i < N; ++i) out[i] = widen(pack.v[i]);
}

template <int N, class T>
__device__ void store(T* p, const Compute<T> (&in)[N]) {
  Pack<T, N> pack;
  RNNFUSED_UNROLL
  for (int i = 0; i < N; ++i) pack.v[i] = narrow<T>(in[i]);
  *reinterpret_cast<Pack<T, N>*>(aligned<sizeof(Pack<T, N>)>(p)) = pack;
}

template <class T, int N>
__device__ void store_zeros(T* p) {
  const Compute<T> none[N] = {};
  store(p, none);
}

// x, or zeros.
template <class T, int N>
__device__ void store_if(bool is_x, T* p, const Compute<T> (&x)[N]) {
  is_x ? store(p, x) : store_zeros<T, N>(p);
}

// This thread's units [first, first + N) of every row, and which rows of a direction's `rows` it visits.
template <int N>
struct Place {
  int direction = int(blockIdx.z);
  Index first = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * N;

  template <class Body>
  __device__ void for_rows(Index rows, Body body) const {
    for (Index b = Index(blockIdx.y) * blockDim.y + threadIdx.y; b < rows;
         b += Index(gridDim.y) * blockDim.y) {
      body(b);
    }
  }
};

// An array in a kernel's parameters, indexed by what is known at run time only: without the choice between
// two constants, it would be copied to local memory.
template <class E>
__device__ E of_direction(const E (&both)[kMaxDirections], int direction) {
  return direction == 0 ? both[0] : both[1];
}

}  // namespace rnnfused::cuda
