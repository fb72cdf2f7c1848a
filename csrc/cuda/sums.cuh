// Gradients of the biases: sums of the gate gradients over all rows, exact ones, since they cancel. Every
// thread sums one column of a share of the rows, and the shares follow from the shape alone: the same bits on
// every run, without atomics.
#pragma once

#include "cuda/gates.cuh"
#include "cuda/plan.h"

namespace rnnfused::cuda {

constexpr Index kShareRows = 256, kMaxShares = 128;

inline Index shares_of(Index rows) {
  const Index shares = (rows + kShareRows - 1) / kShareRows;
  return shares < kMaxShares ? shares : kMaxShares;
}

template <class T>
struct BiasSums {
  Index rows, hidden, shares;
  const T* gradients;  // [D, rows, A, H]
  Index gradients_stride;
  Compute<T>* partial;                                   // [D, shares, 2, A, H]: sums, and what they lost
  T *input[kMaxDirections], *recurrent[kMaxDirections];  // db_ih, db_hh [G * H] or null
};

// blockIdx.y is the share, blockIdx.z the direction.
template <class T>
__global__ void __launch_bounds__(kBlockThreads) sum_shares(BiasSums<T> s, Index columns) {
  const Index column = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const Index share = blockIdx.y;
  const T* gradients = s.gradients + blockIdx.z * s.gradients_stride + column;
  ExactSum<Compute<T>> sum{};
  for (Index row = s.rows * share / s.shares; row < s.rows * (share + 1) / s.shares; ++row)
    sum.add(widen(gradients[row * columns]));
  Compute<T>* out = s.partial + (blockIdx.z * s.shares + share) * 2 * columns + column;
  out[0] = sum.total;
  out[columns] = sum.lost;
}

// blockIdx.z is the direction.
template <class Cell, class T>
__global__ void __launch_bounds__(kBlockThreads) store_bias_gradients(BiasSums<T> s) {
  const Index columns = Cell::accumulators * s.hidden;
  const Index column = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const Compute<T>* partial = s.partial + blockIdx.z * s.shares * 2 * columns + column;
  ExactSum<Compute<T>> sum{};
  for (Index share = 0; share < s.shares; ++share, partial += 2 * columns) {
    sum.add(partial[0]);
    sum.lost = sum.lost + partial[columns];
  }
  const int a = int(column / s.hidden);
  const Index at = gate_of<Cell>(a) * s.hidden + column % s.hidden;
  const T gradient = narrow<T>(sum.value());
  T* const input = of_direction(s.input, int(blockIdx.z));
  T* const recurrent = of_direction(s.recurrent, int(blockIdx.z));
  if (input && feeds<Cell>(Cell::x_first, a)) input[at] = gradient;
  if (recurrent && feeds<Cell>(Cell::h_first, a)) recurrent[at] = gradient;
}

}  // namespace rnnfused::cuda
