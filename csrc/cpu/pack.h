// Weights in the order in which a tile reads them: for a group of blocks of hidden units, [k][vector of the
// group][lane], with the last block's missing lanes zero; or, where an instruction adds two products at once,
// [k / 2][vector][lane][2], with a zero after an odd number of terms.
#pragma once

#include "core/stream.h"
#include "cpu/int8.h"

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

// Rows of a matrix become lanes: out[k * stride + lane] = rows[lane][k] for `lanes` rows, zero beyond them;
// or, where terms go in pairs, out[(k / 2 * stride + lane) * 2 + k % 2].
template <class S, class To>
void pack_rows(const S* rows, Index row_stride, Index lanes, Index size, To* out, Index stride) {
  constexpr Index L = kLanes<Compute<S>>, P = kTerms<S>;
  if constexpr (kQuantized<S>) {
    pack_numbers(rows, row_stride, lanes, size, out, stride);
  } else {
    for (Index k = 0; k < size; k += L * P) {
      const Index n = size - k < L * P ? size - k : L * P;
#if RNNFUSED_VECTOR_BYTES >= 32
      if constexpr (!kNarrow<S>) {
        using V = Native<S>;
        constexpr int E = 16 / sizeof(S);
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
      }
#endif
      Terms<S> v[L];
      for (Index lane = 0; lane < L; ++lane)
        v[lane] = lane < lanes ? load_terms<S>(rows + lane * row_stride + k, n) : Terms<S>{};
      transpose(v);
      for (Index i = 0; i * P < n; ++i) store_terms<S>(out + (k + i * P) * stride, v[i]);
    }
  }
}

// Scalars that a product of `size` terms reads for each lane of a panel: whole pairs where terms go in pairs.
template <class S>
RNNFUSED_HD Index panel_terms(Index size) {
  return (size + kTerms<S> - 1) / kTerms<S> * kTerms<S>;
}

// Packed weights, as a product reads them, or as they are stored: then a tile widens them, which costs less
// than the memory for large ones where few rows are multiplied with them.
template <class S>
class PackedWeights {
  using O = Operand<S>;
  static constexpr Index kLarge = 256 << 10;  // bytes

 public:
  PackedWeights() = default;
  PackedWeights(Arena& arena, Index terms, bool few_rows)
      : as_stored_(kWidens<S> && few_rows && terms * Index(sizeof(O)) > kLarge),
        terms_(arena.take<char>(terms * bytes_of_term())) {}

  PackedWeights from(Index term) const {
    PackedWeights rest = *this;
    rest.terms_ += term * bytes_of_term();
    return rest;
  }
  O* as_multiplied() const { return reinterpret_cast<O*>(terms_); }
  // Calls body(terms).
  template <class Body>
  RNNFUSED_HD void visit(Body body) const {
    if constexpr (kWidens<S>) {
      if (as_stored_) return body(reinterpret_cast<S*>(terms_));
    }
    body(as_multiplied());
  }

 private:
  Index bytes_of_term() const { return Index(as_stored_ ? sizeof(S) : sizeof(O)); }

  bool as_stored_ = false;
  char* terms_ = nullptr;
};

// Panel of `count` blocks from `first` on for a product that sums over the columns of W [gates * units,
// size], whose rows are `stride` apart; the vectors of a block are those of `gates` gates, in the order
// gate_of.
template <class S, class To>
void pack_gates(const S* w, Index units, Index size, Index stride, int gates, const int* gate_of, Index first,
                Index count, To* out) {
  using T = Compute<S>;
  constexpr Index L = kLanes<T>;
  const Index width = count * gates;
  for (Index b = 0; b < count; ++b) {
    const Index unit = (first + b) * L, lanes = lanes_in<T>(first + b, units);
    for (int g = 0; g < gates; ++g) {
      const Index row = gate_of[g] * units + unit;
      pack_rows(w + row * stride, stride, lanes, size, out + (b * gates + g) * L * kTerms<S>, width * L);
    }
  }
}

// One entry of the panel for a product that sums over the rows of a matrix: `count` blocks of the columns of
// a row, or where terms go in pairs of two, of which the second may be null.
template <class S, class To>
RNNFUSED_HD void pack_row(const S* row, const S* next, Index columns, Index first, Index count, To* out) {
  using T = Compute<S>;
  constexpr Index L = kLanes<T>;
  for (Index b = 0; b < count; ++b) {
    const Index at = (first + b) * L, lanes = lanes_in<T>(first + b, columns);
    if constexpr (std::is_same_v<To, Operand<S>>) {
      store_terms<S>(out + b * L * kTerms<S>, join_rows(row + at, next ? next + at : nullptr, lanes));
    } else {
      store(out + b * L, load<Native<T>>(row + at, lanes));
    }
  }
}

// The panel of as many rows, each `stride` behind the one before it.
template <class S, class To>
RNNFUSED_HD void pack_columns(const S* rows, Index stride, Index size, Index columns, Index first,
                              Index count, To* out) {
  constexpr Index P = kTerms<S>;
  for (Index k = 0; k < size; k += P) {
    const S* row = rows + k * stride;
    pack_row(row, P > 1 && k + 1 < size ? row + stride : nullptr, columns, first, count,
             out + k * count * kLanes<Compute<S>>);
  }
}

// Panel for a product that sums over gate gradients, in the order in which the driver keeps them: block of
// hidden units, accumulator, lane. W is [gates * hidden, columns], its rows `stride` apart.
template <class Cell, class S, class To>
void pack_gates_transposed(const S* w, Index hidden, Index columns, Index stride, int feeds, Index first,
                           Index count, To* out) {
  using T = Compute<S>;
  constexpr Index L = kLanes<T>;
  const Index row_scalars = count * L;
  for (Index block = 0; block < blocks_of<T>(hidden); ++block) {
    for (int g = 0; g < Cell::gates; ++g, out += L * row_scalars) {
      const S* from = w + (Cell::gate_of[feeds + g] * hidden + block * L) * stride;
      const Index lanes = lanes_in<T>(block, hidden), there = panel_terms<S>(lanes);
      pack_columns(from, stride, lanes, columns, first, count, out);
      if (there < L) memset(out + there * row_scalars, 0, size_t((L - there) * row_scalars) * sizeof *out);
    }
  }
}

}  // namespace rnnfused::RNNFUSED_ISA
