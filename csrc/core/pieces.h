// The elementwise part of a step of a layer, a piece of one vector at a time, on plain numbers or on dual
// ones: what the kernels of every machine do between loading and storing.
#pragma once

#include <type_traits>

#include "core/dual.h"
#include "core/tangent.h"

namespace rnnfused::RNNFUSED_ISA {

// A vector of a row, at unit `at`.
template <class T>
struct Piece {
  Index row, at, lanes;
};

template <class T>
RNNFUSED_HD Native<T> load_or_zero(const T* data, Index stride, const Piece<T>& piece) {
  return data ? load<Native<T>>(data + piece.row * stride + piece.at, piece.lanes) : Native<T>{};
}

template <class From, class T>
RNNFUSED_HD void load_piece(const DualRows<From>& from, const Piece<T>& piece, Native<T>& out) {
  out = load_or_zero<T>(from.value, from.stride, piece);
}

template <class From, class T>
RNNFUSED_HD void load_piece(const DualRows<From>& from, const Piece<T>& piece, Dual<Native<T>>& out) {
  out.value = load_or_zero<T>(from.value, from.stride, piece);
  out.tangent = load_or_zero<T>(from.tangent, from.stride, piece);
}

template <class T>
RNNFUSED_HD void store_if_wanted(T* data, Index stride, const Piece<T>& piece, Native<T> v) {
  if (data) store(data + piece.row * stride + piece.at, v, piece.lanes);
}

template <class T>
RNNFUSED_HD void store_piece(const DualRows<T>& to, const Piece<T>& piece, const Native<T>& v) {
  store_if_wanted(to.value, to.stride, piece, v);
}

template <class T>
RNNFUSED_HD void store_piece(const DualRows<T>& to, const Piece<T>& piece, const Dual<Native<T>>& v) {
  store_if_wanted(to.value, to.stride, piece, v.value);
  store_if_wanted(to.tangent, to.stride, piece, v.tangent);
}

// Of accumulator `a`, whose H units follow those of the one before it.
template <class T>
RNNFUSED_HD Piece<T> of_accumulator(Piece<T> piece, int a, Index hidden) {
  piece.at += a * hidden;
  return piece;
}

template <class V, int states, class T>
RNNFUSED_HD void load_previous(const PreviousStates<T>& previous, Piece<T> piece, V (&out)[states]) {
  const bool starts = piece.row >= previous.count;
  for (int s = 0; s < states; ++s)
    load_piece(starts ? previous.initial[s] : previous.before[s], piece, out[s]);
}

// The tangents of accumulator `a`: of those that the recurrent product feeds taken from `product` [G, lanes],
// if it is given.
template <class Cell, class T>
RNNFUSED_HD Native<T> load_tangent(const TangentForward<T>& step, const Piece<T>& piece, const T* product,
                                   int a) {
  if (product && a >= Cell::h_first && a < Cell::h_first + Cell::gates)
    return load<Native<T>>(product + (a - Cell::h_first) * kLanes<T>);
  return load_or_zero<T>(step.gates.tangent, step.gates.stride, of_accumulator(piece, a, step.hidden));
}

template <class Cell, class V, class T>
RNNFUSED_HD void load_accumulators(const TangentForward<T>& step, const Piece<T>& piece, const T* product,
                                   V (&acc)[Cell::accumulators]) {
  for (int a = 0; a < Cell::accumulators; ++a) {
    if constexpr (std::is_same_v<V, Dual<Native<T>>>) {
      const Piece<T> at = of_accumulator(piece, a, step.hidden);
      acc[a].value = load_or_zero<T>(step.gates.value, step.gates.stride, at);
      acc[a].tangent = load_tangent<Cell>(step, piece, product, a);
    } else {
      load_piece(step.gates, of_accumulator(piece, a, step.hidden), acc[a]);
    }
  }
}

// The tangents of the next states by the cell's backward, from the tangents of the accumulators: gradients of
// one state at a time are the factors.
template <class Cell, class V, int accumulators, int states>
RNNFUSED_HD void tangents_by_gradients(const V (&tape)[accumulators], const V (&moved)[accumulators],
                                       const Dual<V> (&prev)[states], Dual<V> (&next)[states]) {
  V before[states], after[states];
  for (int s = 0; s < states; ++s) before[s] = prev[s].value, after[s] = next[s].value;
  for (int s = 0; s < states; ++s) {
    V dnext[states]{}, dacc[accumulators], dprev[states];
    dnext[s] = broadcast<V>(1);
    Cell::backward(tape, before, after, dnext, dacc, dprev);
    V sum{};
    for (int a = 0; a < accumulators; ++a) sum = fma(dacc[a], moved[a], sum);
    for (int k = 0; k < states; ++k) sum = fma(dprev[k], prev[k].tangent, sum);
    next[s].tangent = sum;
  }
}

// The tangents alone, where the values are known.
template <class Cell, class T>
RNNFUSED_HD void forward_known(const TangentForward<T>& step, const Piece<T>& piece, const T* product) {
  constexpr int A = Cell::accumulators, S = Cell::states;
  Native<T> tape[A]{}, moved[A];
  Dual<Native<T>> prev[S], next[S];
  for (int a = 0; a < A; ++a) moved[a] = load_tangent<Cell>(step, piece, product, a);
  if constexpr (Cell::taped > 0) {
    const T* taped = step.taped.gates + (piece.row * step.taped.units + piece.at) * A;
    for (int a = 0; a < Cell::taped; ++a) tape[a] = load<Native<T>>(taped + a * kLanes<T>);
  }
  load_previous(step.previous, piece, prev);
  next[0].value = load_or_zero<T>(step.next[0].value, step.next[0].stride, piece);
  if constexpr (S > 1)
    next[1].value = load<Native<T>>(step.taped.cell + piece.row * step.taped.units + piece.at);
  tangents_by_gradients<Cell>(tape, moved, prev, next);
  store_if_wanted(step.next[0].tangent, step.next[0].stride, piece, next[0].tangent);
  if constexpr (S > 1) store_piece(step.next[1], piece, next[1]);
}

template <class Cell, class V, class T>
RNNFUSED_HD void forward_piece(const TangentForward<T>& step, const Piece<T>& piece,
                               const T* product = nullptr) {
  if constexpr (Cell::taped > 0) {
    V acc[Cell::accumulators], prev[Cell::states], next[Cell::states], tape[Cell::accumulators];
    load_accumulators<Cell>(step, piece, product, acc);
    load_previous(step.previous, piece, prev);
    Cell::forward(acc, prev, next, tape);
    for (int a = 0; a < Cell::taped; ++a)
      store_piece(step.gates, of_accumulator(piece, a, step.hidden), tape[a]);
    for (int s = 0; s < Cell::states; ++s) store_piece(step.next[s], piece, next[s]);
  } else if constexpr (std::is_same_v<V, Dual<Native<T>>>) {
    forward_known<Cell>(step, piece, product);
  }
}

template <class Cell, class V, class T>
RNNFUSED_HD void backward_piece(const TangentBackward<T>& step, const Piece<T>& piece) {
  V tape[Cell::accumulators], prev[Cell::states], next[Cell::states], dnext[Cell::states];
  V dacc[Cell::accumulators], dprev[Cell::states], outer;
  for (int a = 0; a < Cell::taped; ++a)
    load_piece(step.gates, of_accumulator(piece, a, step.hidden), tape[a]);
  load_previous(step.previous, piece, prev);
  for (int s = 0; s < Cell::states; ++s) {
    load_piece(step.next[s], piece, next[s]);
    load_piece(step.dstates[s], piece, dnext[s]);
    load_piece(step.outer[s], piece, outer);
    dnext[s] = dnext[s] + outer;
  }
  Cell::backward(tape, prev, next, dnext, dacc, dprev);
  for (int a = 0; a < Cell::accumulators; ++a)
    store_piece(step.gates, of_accumulator(piece, a, step.hidden), dacc[a]);
  for (int s = 0; s < Cell::states; ++s) store_piece(step.dstates[s], piece, dprev[s]);
}

}  // namespace rnnfused::RNNFUSED_ISA
