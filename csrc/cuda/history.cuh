// What every row comes from, gathered for products over all rows at once; and the gates of all rows, rebuilt
// from it where the tape goes without them.
#pragma once

#include "cuda/gates.cuh"
#include "cuda/mask.cuh"
#include "cuda/plan.h"

namespace rnnfused::cuda {

// Positions that one launch gathers for: what the host knows of them travels as a kernel's parameter, so that
// nothing has to be copied to the device.
constexpr int kGathered = 32;

struct Previous {
  Index step, row, active;          // of a position
  Index row_before, active_before;  // of the one before it, in the order in which forward ran
};

template <class From, class Initial, class To>
struct Gather {
  Previous at[kGathered];
  Mask mask;
  int direction;
  Index units;
  const From* rows;  // [rows, stride]
  Index stride;
  const Initial* initial;  // [B, units]
  To* out;                 // [rows, units]
};

// out[row] = the row before it, the initial state where it has none, or zeros. blockIdx.z counts positions.
template <class From, class Initial, class To, int N>
__global__ void __launch_bounds__(kBlockThreads)
    gather_previous(const __grid_constant__ Gather<From, Initial, To> g) {
  const Place<N> place;
  if (place.first >= g.units) return;
  const Previous at = g.at[blockIdx.z];
  place.for_rows(at.active, [&](Index b) {
    Compute<To> x[N] = {};
    const bool there = g.mask.is_there(at.step, b);
    const Origin origin = there ? g.mask.origin(g.direction, at.step, b, at.active_before) : Origin::zero;
    if (origin == Origin::previous) load(g.rows + (at.row_before + b) * g.stride + place.first, x);
    if (origin == Origin::initial) load(g.initial + b * g.units + place.first, x);
    store(g.out + (at.row + b) * g.units + place.first, x);
  });
}

// Of one direction.
template <class Cell, class T>
struct Rebuild {
  Index rows, hidden;
  Biases<T> biases;
  GateOf<Cell, T>* gates;       // [rows, A, H]
  const Compute<T>* recurrent;  // [rows, G, H]
  const T* h;                   // [rows, H]: of the row before; null behind a projection
  const Compute<T>* c;          // [rows, H]: of the row before
};

template <class Cell, class T, int N>
__global__ void __launch_bounds__(kBlockThreads) rebuild_gates(Rebuild<Cell, T> r) {
  using C = Compute<T>;
  constexpr int A = Cell::accumulators;
  const Place<N> place;
  const Index unit = place.first, H = r.hidden;
  if (unit >= H) return;
  C bias[A][N];
  load_biases<Cell>(r.biases, H, unit, bias);
  place.for_rows(r.rows, [&](Index row) {
    C prev[Cell::states][N] = {};
    if (r.h) load(r.h + row * H + unit, prev[0]);
    if constexpr (Cell::states > 1) load(r.c + row * H + unit, prev[1]);
    GateOf<Cell, T>* gates = r.gates + row * A * H + unit;
    const Activated<Cell, N, C> cell(gates, r.recurrent + row * Cell::gates * H + unit, H, bias, prev);
    cell.store_taped(gates, H);
  });
}

}  // namespace rnnfused::cuda
