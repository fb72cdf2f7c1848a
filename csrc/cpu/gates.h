// The accumulators of a block of hidden units: what forward and the rebuilding of its gates have in common.
#pragma once

#include "core/sequence.h"
#include "core/simd.h"
#include "cpu/tile.h"

namespace rnnfused::RNNFUSED_ISA {

// Blocks of hidden units per tile. The narrow tile leaves registers for many rows, so that a weight that is
// loaded is used often; with one or two rows only the wide one has enough independent sums to hide the
// latency of fma.
template <class Cell>
constexpr Index kNarrowGroup = Cell::gates < 4 ? 4 / Cell::gates : 1;
template <class Cell>
constexpr Index kWideGroup = kMaxWidth / Cell::gates;

template <class T>
RNNFUSED_HD void copy_vectors(const T* from, T* to, Index vectors) {
  for (Index i = 0; i < vectors; ++i) store(to + i * kLanes<T>, load<Native<T>>(from + i * kLanes<T>));
}

// Where a block's accumulators start: both biases.
template <class Cell, class S>
RNNFUSED_HD void sum_biases(const Weights<S>& w, Index hidden, Index block, Compute<S>* out) {
  using T = Compute<S>;
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  const Index lanes = lanes_in<T>(block, hidden);
  for (int a = 0; a < Cell::accumulators; ++a) {
    V bias{};
    const Index at = Cell::gate_of[a] * hidden + block * L;
    if (w.input_bias && a >= Cell::x_first && a < Cell::x_first + Cell::gates)
      bias = load<V>(w.input_bias + at, lanes);
    if (w.bias && a >= Cell::h_first && a < Cell::h_first + Cell::gates)
      bias = bias + load<V>(w.bias + at, lanes);
    store(out + a * L, bias);
  }
}

// The accumulators of `blocks` blocks pass through the tile of the input product: from their biases [blocks,
// accumulators, lanes] ...
template <class Cell, class T>
RNNFUSED_HD void start_projection(const T* bias, Index blocks, T* tile) {
  constexpr Index L = kLanes<T>, A = Cell::accumulators, G = Cell::gates;
  for (Index b = 0; b < blocks; ++b) copy_vectors(bias + (b * A + Cell::x_first) * L, tile + b * G * L, G);
}

// ... to where they are kept: out(block). What the product does not feed keeps its bias.
template <class Cell, class T, class OutOf>
RNNFUSED_HD void keep_projection(const T* bias, Index blocks, const T* tile, OutOf out) {
  constexpr Index L = kLanes<T>, A = Cell::accumulators, G = Cell::gates;
  for (Index b = 0; b < blocks; ++b) {
    T* kept = out(b);
    if (G < A) copy_vectors(bias + b * A * L, kept, A);
    copy_vectors(tile + b * G * L, kept + Cell::x_first * L, G);
  }
}

// Those that the recurrent product feeds from the tile, the others from where they are kept.
template <class Cell, class T>
RNNFUSED_HD void load_accumulators(const T* kept, const T* tile, Native<T> (&out)[Cell::accumulators]) {
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  for (int a = 0; a < Cell::accumulators; ++a) {
    const bool fed = a >= Cell::h_first && a < Cell::h_first + Cell::gates;
    out[a] = load<V>(fed ? tile + (a - Cell::h_first) * L : kept + a * L);
  }
}

}  // namespace rnnfused::RNNFUSED_ISA
