// The elementwise part of a step whose products are someone else's, on plain numbers or on dual ones.
#pragma once

#include "core/dual.h"
#include "core/stream.h"
#include "core/tangent.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"

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

template <class Cell, class V, class T>
RNNFUSED_HD void forward_piece(const TangentForward<T>& step, const Piece<T>& piece) {
  V acc[Cell::accumulators], prev[Cell::states], next[Cell::states], tape[Cell::accumulators];
  for (int a = 0; a < Cell::accumulators; ++a)
    load_piece(step.gates, of_accumulator(piece, a, step.hidden), acc[a]);
  load_previous(step.previous, piece, prev);
  Cell::forward(acc, prev, next, tape);
  for (int a = 0; a < Cell::taped; ++a)
    store_piece(step.gates, of_accumulator(piece, a, step.hidden), tape[a]);
  for (int s = 0; s < Cell::states; ++s) store_piece(step.next[s], piece, next[s]);
}

template <class Cell, class V, class T>
RNNFUSED_HD void backward_piece(const TangentBackward<T>& step, const Piece<T>& piece) {
  V tape[Cell::accumulators], prev[Cell::states], next[Cell::states], dnext[Cell::states], outer;
  V dacc[Cell::accumulators], dprev[Cell::states];
  for (int a = 0; a < Cell::taped; ++a)
    load_piece(step.gates, of_accumulator(piece, a, step.hidden), tape[a]);
  load_previous(step.previous, piece, prev);
  for (int s = 0; s < Cell::states; ++s) {
    load_piece(step.next[s], piece, next[s]);
    load_piece(step.dstates[s], piece, dnext[s]);
  }
  load_piece(step.outer, piece, outer);
  dnext[0] = dnext[0] + outer;
  Cell::backward(tape, prev, next, dnext, dacc, dprev);
  for (int a = 0; a < Cell::accumulators; ++a)
    store_piece(step.gates, of_accumulator(piece, a, step.hidden), dacc[a]);
  for (int s = 0; s < Cell::states; ++s) store_piece(step.dstates[s], piece, dprev[s]);
}

// Calls body(piece) for a thread's share of a step.
template <class T, class Body>
RNNFUSED_HD void for_pieces(Index rows, Index hidden, int threads, int thread, Body body) {
  const Index blocks = blocks_of<T>(hidden);
  const Range mine = share(rows * blocks, threads, thread);
  if (mine.size() == 0) return;
  Index row = mine.first / blocks, block = mine.first % blocks;
  for (Index i = mine.first; i < mine.last; ++i) {
    body(Piece<T>{row, block * kLanes<T>, lanes_in<T>(block, hidden)});
    if (++block == blocks) ++row, block = 0;
  }
}

template <class Cell, class T>
void tangent_forward(const TangentForward<T>& step, int threads, int thread) {
  const auto run = [&](auto number) {
    for_pieces<T>(step.rows, step.hidden, threads, thread,
                  [&](const Piece<T>& piece) { forward_piece<Cell, decltype(number)>(step, piece); });
  };
  step.tangents ? run(Dual<Native<T>>{}) : run(Native<T>{});
}

template <class Cell, class T>
void tangent_backward(const TangentBackward<T>& step, int threads, int thread) {
  const auto run = [&](auto number) {
    for_pieces<T>(step.rows, step.hidden, threads, thread,
                  [&](const Piece<T>& piece) { backward_piece<Cell, decltype(number)>(step, piece); });
  };
  step.tangents ? run(Dual<Native<T>>{}) : run(Native<T>{});
}

template <class Cell, class T>
constexpr TangentKernels<T> tangent_kernels_of() {
  return {&tangent_forward<Cell, T>, &tangent_backward<Cell, T>};
}

}  // namespace rnnfused::RNNFUSED_ISA
