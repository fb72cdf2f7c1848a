// Weights in the order in which a tile reads them: for a group of blocks of hidden units, [k][vector of the
// group][lane], with the last block's missing lanes zero.
#pragma once

#include "core/sequence.h"
#include "core/simd.h"

namespace rnnfused::RNNFUSED_ISA {

template <class T>
RNNFUSED_HD Index blocks_of(Index n) {
  return (n + kLanes<T> - 1) / kLanes<T>;
}

// n rounded up to whole vectors.
template <class T>
RNNFUSED_HD Index padded(Index n) {
  return blocks_of<T>(n) * kLanes<T>;
}

template <class T>
RNNFUSED_HD Index lanes_in(Index block, Index n) {
  const Index rest = n - block * kLanes<T>;
  return rest < kLanes<T> ? rest : kLanes<T>;
}

// Transposes E x E scalars in registers, or as many such squares as lie beside one another: every round
// interleaves the two halves of the set, and after log2 rounds rows have become columns.
template <int E, class V>
RNNFUSED_HD void transpose(V (&v)[E]) {
  if constexpr (E > 1) {
    for (int round = 1; round < E; round *= 2) {
      V next[E];
      for (int i = 0; i < E / 2; ++i) interleave<E>(v[i], v[i + E / 2], next[2 * i], next[2 * i + 1]);
      for (int i = 0; i < E; ++i) v[i] = next[i];
    }
  }
}

// Rows of a matrix become lanes: out[k * stride + lane] = rows[lane][k] for `lanes` rows, zero beyond them.
template <class T>
void pack_rows(const T* rows, Index row_stride, Index lanes, Index size, T* out, Index stride) {
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  for (Index k = 0; k < size; k += L) {
    const Index n = size - k < L ? size - k : L;
#if RNNFUSED_VECTOR_BYTES >= 32
    constexpr int E = 16 / sizeof(T);
    if (n == L && lanes == L) {
      for (Index column = k; column < k + L; column += E) {
        V v[E];
        for (int r = 0; r < E; ++r)
          v[r] = instruction::pieces(rows + r * row_stride + column, E * row_stride);
        transpose(v);
        for (int i = 0; i < E; ++i) store(out + (column + i) * stride, v[i]);
      }
      continue;
    }
#endif
    V v[L];
    for (Index lane = 0; lane < L; ++lane)
      v[lane] = lane < lanes ? load<V>(rows + lane * row_stride + k, n) : V{};
    transpose(v);
    for (Index i = 0; i < n; ++i) store(out + (k + i) * stride, v[i]);
  }
}

// Panel of `count` blocks from `first` on for a product that sums over the columns of W [gates * hidden,
// size]; the vectors of a block are the cell's accumulators from `feeds` on.
template <class Cell, class T>
void pack_gates(const T* w, Index hidden, Index size, int feeds, Index first, Index count, T* out) {
  constexpr Index L = kLanes<T>;
  const Index width = count * Cell::gates;
  for (Index b = 0; b < count; ++b) {
    const Index unit = (first + b) * L, lanes = lanes_in<T>(first + b, hidden);
    for (int g = 0; g < Cell::gates; ++g) {
      const Index row = Cell::gate_of[feeds + g] * hidden + unit;
      pack_rows(w + row * size, size, lanes, size, out + (b * Cell::gates + g) * L, width * L);
    }
  }
}

// One row of the panel for a product that sums over the rows of a matrix: `count` blocks of its columns.
template <class T>
RNNFUSED_HD void pack_row(const T* row, Index columns, Index first, Index count, T* out) {
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  for (Index b = 0; b < count; ++b)
    store(out + b * L, load<V>(row + (first + b) * L, lanes_in<T>(first + b, columns)));
}

// Panel for a product that sums over gate gradients, in the order in which the driver keeps them: block of
// hidden units, accumulator, lane. W is [gates * hidden, columns].
template <class Cell, class T>
void pack_gates_transposed(const T* w, Index hidden, Index columns, int feeds, Index first, Index count,
                           T* out) {
  constexpr Index L = kLanes<T>;
  const Index row_scalars = count * L;
  for (Index block = 0; block < blocks_of<T>(hidden); ++block) {
    for (int g = 0; g < Cell::gates; ++g) {
      const T* from = w + (Cell::gate_of[feeds + g] * hidden + block * L) * columns;
      const Index lanes = lanes_in<T>(block, hidden);
      for (Index lane = 0; lane < L; ++lane, out += row_scalars) {
        if (lane < lanes) {
          pack_row(from + lane * columns, columns, first, count, out);
        } else {
          memset(out, 0, size_t(row_scalars) * sizeof(T));
        }
      }
    }
  }
}

}  // namespace rnnfused::RNNFUSED_ISA
