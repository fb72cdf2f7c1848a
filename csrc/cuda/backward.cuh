// The kernels of a backward step: one for the gate gradients and the states' gradients of every row and both
// directions, and one more where the output is projected.
#pragma once

#include "cuda/gates.cuh"
#include "cuda/mask.cuh"
#include "cuda/plan.h"

namespace rnnfused::cuda {

// Rows of one direction at a position and at its neighbours, in the order in which forward ran: `after` rows
// are active at the next position, `before` at the previous one, whose first row is `row_before`.
struct BackwardRows {
  Index step;  // or -1 before the first position
  Index active, after, before, row, row_before;
  Index gates_row;  // the first row among those whose gates are there
};

// Gradient of h after the position, for rows that are active there; and for rows that start at the next
// position, of the initial state. `recurrent` is the product of the next position's gate gradients with W_hh
// and reaches those rows only that are active there.
template <class T, int N>
__device__ void add_recurrent(const BackwardRows& at, Index b, const Compute<T>* recurrent,
                              Compute<T> (&dh)[N]) {
  if (b >= at.after) return;
  Compute<T> sum[N];
  load(recurrent, sum);
  RNNFUSED_UNROLL
  for (int i = 0; i < N; ++i) dh[i] = dh[i] + sum[i];
}

template <class T, int N>
__device__ void add_outer(const T* dy, Compute<T> (&dh)[N]) {
  Compute<T> outer[N];
  load(dy, outer);
  RNNFUSED_UNROLL
  for (int i = 0; i < N; ++i) dh[i] = dh[i] + outer[i];
}

template <class Cell, class T>
struct BackwardStep {
  BackwardRows at[kMaxDirections];
  Mask mask;
  Index batch, hidden, directions;
  const GateOf<Cell, T>* gates;  // what the cell taped, or would have [D, rows, A, H]
  Index gates_stride;            // of a direction
  const Compute<T>* cell;        // c of every row [D, rows, H]
  Index cell_stride;
  const T* y;  // [rows, y_stride]
  Index y_stride;
  const T* h0;                  // [D, B, H]
  const Compute<T>* c0;         // [D, B, H]
  const T* dy;                  // [rows, y_stride] or null
  const T* dcells;              // [rows, D * H] or null
  const Compute<T>* recurrent;  // [D, B, H]
  // Without a projection null; else the gradient of the cell's output [D, B, H], which takes the place of
  // `recurrent`, dy and dh.
  const Compute<T>* output;
  Compute<T>* dh;  // [D, B, H]
  Compute<T>* dc;  // [D, B, H]
  T* gradients;    // of the gates [D, rows, A, H]
  Index gradients_stride;
  T* now;  // the same of this position [D, B, A, H]
};

template <class Cell, class T, int N>
__global__ void __launch_bounds__(kBlockThreads) backward_step(BackwardStep<Cell, T> s) {
  using C = Compute<T>;
  constexpr int A = Cell::accumulators, S = Cell::states;
  const Place<N> place;
  const int d = place.direction;
  const Index unit = place.first, H = s.hidden;
  if (unit >= H) return;
  const BackwardRows at = of_direction(s.at, d);
  const Index rows = at.active > at.after ? at.active : at.after;

  place.for_rows(s.output ? at.active : rows, [&](Index b) {
    const Index state = (d * s.batch + b) * H + unit;
    T* gradients = s.gradients + d * s.gradients_stride + (at.row + b) * A * H + unit;
    T* now = s.now + (d * s.batch + b) * A * H + unit;
    C dnext[S][N] = {}, prev[S][N] = {}, next[S][N] = {}, taped[A][N] = {};
    const bool there = b < at.active && s.mask.is_there(at.step, b);
    const bool zeroed = there && s.mask.ends_in_zero(d, at.step, b);
    if (!s.output && !zeroed) {
      load(s.dh + state, dnext[0]);
      add_recurrent<T>(at, b, s.recurrent + state, dnext[0]);
    }
    if (!there) {
      if (!s.output) store(s.dh + state, dnext[0]);
      // What lies beyond a length takes part in the products all the same.
      RNNFUSED_UNROLL
      for (int a = 0; b < at.active && a < A; ++a)
        store_zeros<T, N>(gradients + a * H), store_zeros<T, N>(now + a * H);
      return;
    }
    const Origin origin = s.mask.origin(d, at.step, b, at.before);
    const bool previous = origin == Origin::previous, goes_on = origin != Origin::zero;
    if (s.output) {
      load(s.output + state, dnext[0]);
    } else {
      const Index y = (at.row + b) * s.y_stride + d * H + unit;
      if (s.dy) add_outer(s.dy + y, dnext[0]);
      load(s.y + y, next[0]);
      const T* before = previous ? s.y + (at.row_before + b) * s.y_stride + d * H + unit : s.h0 + state;
      if (goes_on) load(before, prev[0]);
    }
    if constexpr (S > 1) {
      const C* cell = s.cell + d * s.cell_stride + unit;
      load(cell + (at.row + b) * H, next[1]);
      if (goes_on) load(previous ? cell + (at.row_before + b) * H : s.c0 + state, prev[1]);
      if (!zeroed) load(s.dc + state, dnext[1]);
      if (s.dcells) add_outer(s.dcells + (at.row + b) * s.directions * H + d * H + unit, dnext[1]);
    }
    const GateOf<Cell, T>* tape = s.gates + d * s.gates_stride + (at.gates_row + b) * A * H + unit;
    RNNFUSED_UNROLL
    for (int a = 0; a < Cell::taped; ++a) load(tape + a * H, taped[a]);

    C dgates[A][N], dprev[S][N];
    RNNFUSED_UNROLL
    for (int i = 0; i < N; ++i) {
      C tape_i[A], prev_i[S], next_i[S], dnext_i[S], dgates_i[A], dprev_i[S];
      RNNFUSED_UNROLL
      for (int a = 0; a < A; ++a) tape_i[a] = taped[a][i];
      RNNFUSED_UNROLL
      for (int k = 0; k < S; ++k) prev_i[k] = prev[k][i], next_i[k] = next[k][i], dnext_i[k] = dnext[k][i];
      Cell::backward(tape_i, prev_i, next_i, dnext_i, dgates_i, dprev_i);
      RNNFUSED_UNROLL
      for (int a = 0; a < A; ++a) dgates[a][i] = dgates_i[a];
      RNNFUSED_UNROLL
      for (int k = 0; k < S; ++k) dprev[k][i] = dprev_i[k];
    }

    RNNFUSED_UNROLL
    for (int a = 0; a < A; ++a) {
      store(gradients + a * H, dgates[a]);
      store_if(goes_on, now + a * H, dgates[a]);
    }
    if (!s.output) store_if(goes_on, s.dh + state, dprev[0]);
    if constexpr (S > 1) store_if(goes_on, s.dc + state, dprev[1]);
  });
}

template <class T>
struct ProjectedGradient {
  BackwardRows at[kMaxDirections];
  Mask mask;
  Index batch, output;
  const T* dy;  // [rows, y_stride] or null
  Index y_stride;
  const Compute<T>* recurrent;  // [D, B, P]
  Compute<T>* dh;               // [D, B, P]
  T* gradients;                 // of the projected output [D, rows, P]
  Index gradients_stride;
  T* now;  // the same of this position [D, B, P]
};

// All that reaches a projected h; a cell that can be projected has no direct path from h to h.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads) projected_gradient(ProjectedGradient<T> s) {
  const Place<N> place;
  const int d = place.direction;
  const Index P = s.output;
  if (place.first >= P) return;
  const BackwardRows at = of_direction(s.at, d);
  place.for_rows(at.active > at.after ? at.active : at.after, [&](Index b) {
    const Index state = (d * s.batch + b) * P + place.first;
    T* gradients = s.gradients + d * s.gradients_stride + (at.row + b) * P + place.first;
    Compute<T> dh[N] = {};
    const bool there = b < at.active && s.mask.is_there(at.step, b);
    if (!(there && s.mask.ends_in_zero(d, at.step, b))) {
      load(s.dh + state, dh);
      add_recurrent<T>(at, b, s.recurrent + state, dh);
    }
    if (!there) {
      store(s.dh + state, dh);
      if (b < at.active) store_zeros<T, N>(gradients), store_zeros<T, N>(s.now + state);
      return;
    }
    if (s.dy) add_outer(s.dy + (at.row + b) * s.y_stride + d * P + place.first, dh);
    store(gradients, dh);
    store(s.now + state, dh);
    store_zeros<Compute<T>, N>(s.dh + state);
  });
}

}  // namespace rnnfused::cuda
