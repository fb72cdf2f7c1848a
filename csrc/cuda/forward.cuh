// The kernels of a forward step: one for the gates and states of every row and both directions, and one more
// behind a projection.
#pragma once

#include "cuda/gates.cuh"
#include "cuda/mask.cuh"
#include "cuda/plan.h"

namespace rnnfused::cuda {

// Rows of one direction at a position: its step, how many are active there and at the position before; the
// first of them among all rows, and among those of the current chunk.
struct ForwardRows {
  Index step, active, before, row, chunk_row;
};

template <class Cell, class T>
struct ForwardStep {
  ForwardRows at[kMaxDirections];
  Mask mask;
  Biases<T> biases[kMaxDirections];
  Index batch, hidden, directions;
  GateOf<Cell, T>* gates;       // [D, rows of the chunk, A, H]: the input's projection, then what is taped
  Index gates_stride;           // of a direction
  bool tapes_gates;             // whether what the cell tapes is kept
  const Compute<T>* recurrent;  // [D, B, G, H]
  T* h;                         // [D, B, H], not read or written behind a projection
  Compute<T>* h_wide;           // the same before it is rounded to T, or null where T is the compute type
  Compute<T>* c;                // [D, B, H]
  T* y;                         // [rows, y_stride]
  Index y_stride;
  T* cells;          // c of every row, as it is given out [rows, D * H], or null
  Compute<T>* cell;  // the same as backward reads it [D, rows, H], or null
  Index cell_stride;
  T* output;       // [D, B, H]: what is projected, or null without a projection
  T* unprojected;  // the same of every row [D, rows, H], or null
  Index unprojected_stride;
};

template <class Cell, class T, int N>
__global__ void __launch_bounds__(kBlockThreads) forward_step(ForwardStep<Cell, T> s) {
  using C = Compute<T>;
  constexpr int A = Cell::accumulators;
  const Place<N> place;
  const int d = place.direction;
  const Index unit = place.first, H = s.hidden;
  if (unit >= H) return;
  const ForwardRows at = of_direction(s.at, d);
  C bias[A][N];
  load_biases<Cell>(of_direction(s.biases, d), H, unit, bias);

  place.for_rows(at.active, [&](Index b) {
    const Index state = (d * s.batch + b) * H + unit;
    T* const y = s.y + (at.row + b) * s.y_stride + d * H + unit;
    if (!s.mask.is_there(at.step, b)) {
      if (!s.output) store_zeros<T, N>(y);
      if (s.cells) store_zeros<T, N>(s.cells + (at.row + b) * s.directions * H + d * H + unit);
      // Backward's products take these rows along.
      if (s.unprojected)
        store_zeros<T, N>(s.unprojected + d * s.unprojected_stride + (at.row + b) * H + unit);
      return;
    }
    C prev[Cell::states][N] = {};
    const Origin origin = s.mask.origin(d, at.step, b, at.before);
    if (origin != Origin::zero) {
      // A row that starts here has its h only as it was given.
      const bool wide = s.h_wide && origin == Origin::previous;
      if (!s.output) wide ? load(s.h_wide + state, prev[0]) : load(s.h + state, prev[0]);
      if constexpr (Cell::states > 1) load(s.c + state, prev[1]);
    }
    GateOf<Cell, T>* gates = s.gates + d * s.gates_stride + (at.chunk_row + b) * A * H + unit;
    const C* recurrent = s.recurrent + (d * s.batch + b) * Cell::gates * H + unit;
    const Activated<Cell, N, C> cell(gates, origin == Origin::zero ? nullptr : recurrent, H, bias, prev);
    const bool zeroed = s.mask.ends_in_zero(d, at.step, b);
    if (s.tapes_gates) cell.store_taped(gates, H);
    if constexpr (Cell::states > 1) {
      store_if(!zeroed, s.c + state, cell.next[1]);
      if (s.cells) store(s.cells + (at.row + b) * s.directions * H + d * H + unit, cell.next[1]);
      if (s.cell) store(s.cell + d * s.cell_stride + (at.row + b) * H + unit, cell.next[1]);
    }
    if (s.output) {
      store(s.output + state, cell.next[0]);
      if (s.unprojected)
        store(s.unprojected + d * s.unprojected_stride + (at.row + b) * H + unit, cell.next[0]);
    } else {
      store_if(!zeroed, s.h + state, cell.next[0]);
      if (s.h_wide) store(s.h_wide + state, cell.next[0]);
      store(y, cell.next[0]);
    }
  });
}

template <class T>
struct ProjectedStep {
  ForwardRows at[kMaxDirections];
  Mask mask;
  Index batch, output;
  const Compute<T>* product;  // [D, B, P]
  T* h;                       // [D, B, P]
  Compute<T>* h_wide;         // the same before it is rounded, or null
  T* y;                       // [rows, y_stride]
  Index y_stride;
};

template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads) store_projected(ProjectedStep<T> s) {
  const Place<N> place;
  const int d = place.direction;
  if (place.first >= s.output) return;
  const ForwardRows at = of_direction(s.at, d);
  place.for_rows(at.active, [&](Index b) {
    const Index state = (d * s.batch + b) * s.output + place.first;
    Compute<T> h[N] = {};
    const bool there = s.mask.is_there(at.step, b);
    if (there) {
      load(s.product + state, h);
      store_if(!s.mask.ends_in_zero(d, at.step, b), s.h + state, h);
      if (s.h_wide) store(s.h_wide + state, h);
    }
    store(s.y + (at.row + b) * s.y_stride + d * s.output + place.first, h);
  });
}

}  // namespace rnnfused::cuda
