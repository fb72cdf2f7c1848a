// The gates of a row: accumulators from the products and biases, through the cell's forward maths.
#pragma once

#include <type_traits>

#include "cells/all.h"
#include "core/staged.h"
#include "cuda/vector.cuh"

namespace rnnfused::cuda {

using namespace RNNFUSED_ISA;  // the cells, as this object's kernels run them

// What the input's projection is kept in, and then what the cell tapes. Not rounded are sums that options
// make norms of, and those of cells that tape nothing: across a relu's bend a rounding opens or closes it.
template <class Cell, class T>
using GateOf = std::conditional_t<kStaged<Cell> || Cell::taped == 0, Compute<T>, T>;

template <class Cell>
__device__ constexpr bool feeds(int first, int accumulator) {
  return accumulator >= first && accumulator < first + Cell::gates;
}

// Cell::gate_of[a]. Device code can take an element of a constant array only where its index is a constant
// too; once the loop over `a` is unrolled, nothing is left of the recursion.
template <class Cell, int From = 0>
__device__ constexpr int gate_of(int a) {
  constexpr int gate = Cell::gate_of[From];
  if constexpr (From + 1 == Cell::accumulators) {
    return gate;
  } else {
    return a == From ? gate : gate_of<Cell, From + 1>(a);
  }
}

template <class T>
struct Biases {
  const T *input, *recurrent;  // b_ih, b_hh [G * H], or null
};

// Both biases of every accumulator.
template <class Cell, int N, class T>
__device__ void load_biases(const Biases<T>& from, Index hidden, Index unit,
                            Compute<T> (&out)[Cell::accumulators][N]) {
  RNNFUSED_UNROLL
  for (int a = 0; a < Cell::accumulators; ++a) {
    Compute<T> x[N] = {}, h[N] = {};
    const Index at = gate_of<Cell>(a) * hidden + unit;
    if (from.input && feeds<Cell>(Cell::x_first, a)) load(from.input + at, x);
    if (from.recurrent && feeds<Cell>(Cell::h_first, a)) load(from.recurrent + at, h);
    RNNFUSED_UNROLL
    for (int i = 0; i < N; ++i) out[a][i] = x[i] + h[i];
  }
}

// What the cell makes of one row: from the input projection `gates` [A, H] and the recurrent product [G, H],
// or null where it is zero, both at the first of the N units, and from the previous states.
template <class Cell, int N, class C>
struct Activated {
  C next[Cell::states][N], taped[Cell::accumulators][N];

  template <class T>
  __device__ Activated(const T* gates, const C* recurrent, Index hidden,
                       const C (&bias)[Cell::accumulators][N], const C (&prev)[Cell::states][N]) {
    constexpr int A = Cell::accumulators;
    C sums[A][N];
    RNNFUSED_UNROLL
    for (int a = 0; a < A; ++a) {
      C x[N] = {}, h[N] = {};
      if (feeds<Cell>(Cell::x_first, a)) load(gates + a * hidden, x);
      if (recurrent && feeds<Cell>(Cell::h_first, a)) load(recurrent + (a - Cell::h_first) * hidden, h);
      RNNFUSED_UNROLL
      for (int i = 0; i < N; ++i) sums[a][i] = (x[i] + bias[a][i]) + h[i];
    }
    RNNFUSED_UNROLL
    for (int i = 0; i < N; ++i) {
      C acc[A], before[Cell::states], after[Cell::states], tape[A];
      RNNFUSED_UNROLL
      for (int a = 0; a < A; ++a) acc[a] = sums[a][i];
      RNNFUSED_UNROLL
      for (int k = 0; k < Cell::states; ++k) before[k] = prev[k][i];
      Cell::forward(acc, before, after, tape);
      RNNFUSED_UNROLL
      for (int k = 0; k < Cell::states; ++k) next[k][i] = after[k];
      RNNFUSED_UNROLL
      for (int a = 0; a < Cell::taped; ++a) taped[a][i] = tape[a];
    }
  }

  template <class T>
  __device__ void store_taped(T* gates, Index hidden) const {
    RNNFUSED_UNROLL
    for (int a = 0; a < Cell::taped; ++a) store(gates + a * hidden, taped[a]);
  }
};

}  // namespace rnnfused::cuda
