// The kernels of layers with options (core/variation.h): a step's states from its sums, and back. To the
// products such a layer is one of G H units (core/staged.h). A block has a row, all units of it where
// something is normalised over them, and a thread a unit at a time; sums over a row are made in an order that
// the number of units alone decides.
#pragma once

#include <cmath>

#include "cells/varied_units.h"
#include "core/philox.h"
#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/history.cuh"

namespace rnnfused::cuda {

// Sums of rows that are kept for the parameters' gradients: where each parameter's begin, and how many there
// are.
struct SumRows {
  int peephole, norm_x, norm_h, norm_c, unit, count;
};

template <class T>
struct VariedStep {
  Variation<Compute<T>> variation[kMaxDirections];
  Mask mask;
  Biases<T> biases[kMaxDirections];
  Index batch, hidden, directions;
  const T* x;  // [rows, x_stride], whose last column is the row's weight where the cell has one
  Index x_stride;
  // Sums of what x feeds, and of what h feeds where they are taped [D, rows, 2, G, H]; without biases.
  Compute<T>* sums;
  Index sums_stride;  // of a direction
  // A step's product, or null where h enters by none: forward [D, B, G, H]; backward [D, B, H], of the next
  // position's gate gradients.
  const Compute<T>* recurrent;
  Compute<T>* norms;  // of every row [D, rows, kNormScalars], or null where nothing is normalised
  Index rows;         // of a direction
};

// Of the widest kernels on a multiprocessor at once: enough to hide latency, few enough for their registers.
constexpr int kVariedBlocks = 4;

// The units of this thread, one at a time.
template <class Body>
__device__ void for_units(Index hidden, Body body) {
  for (Index unit = Index(blockIdx.y) * blockDim.x + threadIdx.x; unit < hidden;
       unit += Index(gridDim.y) * blockDim.x)
    body(unit);
}

// Each of N numbers summed over the block's threads, of which there are a power of two. All threads meet.
template <int N, class C>
__device__ __forceinline__ void sum_over_block(C (&x)[N]) {
  const auto shared = shared_memory<C>(0);
  const unsigned threads = blockDim.x, thread = threadIdx.x;
  RNNFUSED_UNROLL
  for (int i = 0; i < N; ++i) *(shared + (i * threads + thread)) = x[i];
  block_sync();
  for (unsigned half = threads / 2; half > 0; half /= 2) {
    RNNFUSED_UNROLL
    for (int i = 0; thread < half && i < N; ++i) {
      const auto at = shared + (i * threads + thread);
      *at = C(*at) + C(*(at + half));
    }
    block_sync();
  }
  RNNFUSED_UNROLL
  for (int i = 0; i < N; ++i) x[i] = *(shared + i * threads);
  block_sync();  // before the next sum takes the place of this one
}
constexpr int kBlockSums = 2;  // at most, of one call

template <class C>
struct OfUnit {
  Index unit, hidden;
  __device__ C operator()(const C* rows, Index row, C otherwise) const {
    return rows ? rows[row * hidden + unit] : otherwise;
  }
};

// The number that a sequence's dropout is drawn by. Every sequence has a row at the first step.
template <class C>
__device__ Index dropped_as(const Variation<C>& v, Index b) {
  return v.numbers ? v.numbers[b] % v.batch : b;
}

// One row of a step as its block sees it.
template <class T>
struct VariedRow {
  using C = Compute<T>;
  using Units = VariedUnits<C, OfUnit<C>>;

  const VariedStep<T>& s;
  const Variation<C>& v;
  int direction;
  Index step, b, row;  // row: of the direction's
  const C* sums;       // [2, G, H]
  const C* recurrent;  // [G, H], or null

  // `sums_row`: among those that are there. `recurs`: whether the row has a product of its own.
  __device__ VariedRow(const VariedStep<T>& of_step, Index at_step, Index at_row, Index sums_row, bool recurs)
      : s(of_step),
        v(s.variation[blockIdx.z]),
        direction(int(blockIdx.z)),
        step(at_step),
        b(blockIdx.x),
        row(at_row),
        sums(s.sums + direction * s.sums_stride + sums_row * 2 * v.gates * s.hidden),
        recurrent(recurs ? s.recurrent + (direction * s.batch + b) * v.gates * s.hidden : nullptr) {}

  __device__ Units units(Index unit) const { return {v, OfUnit<C>{unit, s.hidden}}; }
  __device__ Index state(Index unit) const { return (direction * s.batch + b) * s.hidden + unit; }
  // Of the vectors beside h, which lie one after the other for each row.
  __device__ Index second(int vector, Index unit) const {
    return ((direction * s.batch + b) * (v.states - 1) + vector - 1) * s.hidden + unit;
  }
  __device__ Index cell(int vector, Index of_row, Index unit) const {
    return ((direction * s.rows + of_row) * (v.states - 1) + vector - 1) * s.hidden + unit;
  }
  __device__ C weight() const { return v.attends() ? widen(s.x[row * s.x_stride + s.x_stride - 1]) : C(0); }

  // In forward, from the products.
  __device__ GateSums<C> raw(Index unit) const { return biased(unit, sums, recurrent); }
  // In backward, from the tape.
  __device__ GateSums<C> taped(Index unit) const { return biased(unit, sums, sums + v.gates * s.hidden); }

  __device__ C kept(int vector, Index unit) const {
    if (!v.drawn || !(v.zoneout_of(vector) > 0)) return C(0);
    const Draw what = vector == 0 ? Draw::zoneout_h : Draw::zoneout_c;
    const Index number = v.numbers ? v.numbers[row] : step * v.batch + b;
    return drawn(what, number, unit) < philox_threshold(v.zoneout[vector]) ? C(1) : C(0);
  }
  __device__ C factor(Index unit) const {
    if (!v.drops()) return C(1);
    return dropout_factor(
        v, drawn(Draw::recurrent_dropout, dropped_as(v, b), unit) < philox_threshold(v.recurrent_dropout));
  }

  // ---- Norms

  // Mean and scale of each of N quantities, of which a unit has count[k] values: values(unit, x) makes them.
  template <int N, class Values>
  __device__ __forceinline__ void moments(const int (&count)[N], Values values,
                                          Norm<C>* const (&out)[N]) const {
    C sum[N] = {}, squares[N] = {};
    // body(quantity, value) of every value of this thread's units.
    const auto for_values = [&](auto body) {
      for_units(s.hidden, [&](Index unit) {
        C x[N][kMaxGates] = {};
        values(unit, x);
        RNNFUSED_UNROLL
        for (int k = 0; k < N; ++k) {
          RNNFUSED_UNROLL
          for (int g = 0; g < kMaxGates; ++g) {
            if (g < count[k]) body(k, x[k][g]);
          }
        }
      });
    };
    for_values([&](int k, C x) { sum[k] += x; });
    sum_over_block(sum);
    RNNFUSED_UNROLL
    for (int k = 0; k < N; ++k) out[k]->mean = count[k] > 0 ? sum[k] / C(count[k] * s.hidden) : C(0);
    for_values([&](int k, C x) {
      const C difference = x - out[k]->mean;
      squares[k] = fma(difference, difference, squares[k]);
    });
    sum_over_block(squares);
    RNNFUSED_UNROLL
    for (int k = 0; k < N; ++k) {
      const C variance = count[k] > 0 ? squares[k] / C(count[k] * s.hidden) : C(0);
      out[k]->scale = C(1) / std::sqrt(variance + C(kNormEps));
    }
  }

  __device__ C* norms() const { return s.norms + (direction * s.rows + row) * kNormScalars; }
  __device__ void store_norms(const RowNorms<C>& all) const {
    if (threadIdx.x > 0) return;
    C* const out = norms();
    out[0] = all.x.mean, out[1] = all.x.scale, out[2] = all.h.mean, out[3] = all.h.scale;
    out[4] = all.c.mean, out[5] = all.c.scale;
  }
  __device__ RowNorms<C> load_norms() const {
    if (!v.norms()) return {};
    const C* const in = norms();
    return {{in[0], in[1]}, {in[2], in[3]}, {in[4], in[5]}};
  }

 private:
  __device__ uint32_t drawn(Draw what, Index of_number, Index unit) const {
    return philox_word(v.seed, what, direction, uint64_t(of_number), uint32_t(unit));
  }
  __device__ GateSums<C> biased(Index unit, const C* x, const C* h) const {
    const Biases<T> bias = of_direction(s.biases, direction);
    GateSums<C> all;
    RNNFUSED_UNROLL
    for (int g = 0; g < kMaxGates; ++g) {
      const Index at = g * s.hidden + unit;
      const bool there = g < v.gates;
      all.x[g] = there ? x[at] + (bias.input ? widen(bias.input[at]) : C(0)) : C(0);
      all.h[g] = there ? (h ? h[at] : C(0)) + (bias.recurrent ? widen(bias.recurrent[at]) : C(0)) : C(0);
    }
    return all;
  }
};

// ---- Forward

template <class T>
struct VariedForwardStep : VariedStep<T> {
  ForwardRows at[kMaxDirections];
  bool tapes_sums;
  T* h;                 // [D, B, H]: as given, or the last
  Compute<T>* h_wide;   // the same unrounded, or null where T is the compute type
  Compute<T>* c;        // the vectors beside h [D, B, states - 1, H]
  T* operand;           // [D, B, H]: what the product reads, where that is not h; or null
  T* reset;             // [D, B, H]: r h, what the last gate's product reads; or null
  T* y;                 // [rows, D * H]
  T* cells;             // [rows, D * H], or null
  Compute<T>* cell;     // as backward reads it [D, rows, states - 1, H], or null
  Compute<T>* carried;  // f c + i g [D, B, H], where c is normalised
};

// A row's states before a step.
template <class T>
struct StatesBefore {
  const VariedForwardStep<T>& s;
  const VariedRow<T>& row;
  Origin origin;
  __device__ Compute<T> operator()(int vector, Index unit) const {
    if (origin == Origin::zero) return Compute<T>(0);
    if (vector > 0) return s.c[row.second(vector, unit)];
    const bool wide = s.h_wide && origin == Origin::previous;
    return wide ? s.h_wide[row.state(unit)] : widen(s.h[row.state(unit)]);
  }
};

// What each initial h enters the product as. blockIdx.x is the row of the batch.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    varied_start(const __grid_constant__ VariedForwardStep<T> s) {
  const VariedRow<T> row(s, 0, Index(blockIdx.x), 0, false);
  for_units(s.hidden, [&](Index unit) {
    s.operand[row.state(unit)] = narrow<T>(widen(s.h[row.state(unit)]) * row.factor(unit));
  });
}

// r h of a step, from the sums of the reset gate.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    varied_reset(const __grid_constant__ VariedForwardStep<T> s) {
  const ForwardRows at = of_direction(s.at, int(blockIdx.z));
  const Index b = blockIdx.x;
  if (b >= at.active) return;
  const bool there = s.mask.is_there(at.step, b);
  const Origin origin = there ? s.mask.origin(int(blockIdx.z), at.step, b, at.before) : Origin::zero;
  const VariedRow<T> row(s, at.step, at.row + b, at.chunk_row + b, true);
  const StatesBefore<T> before{s, row, origin};
  for_units(s.hidden, [&](Index unit) {
    const Compute<T> h = before(0, unit) * row.factor(unit);
    s.reset[row.state(unit)] = narrow<T>(reset_gate(row.v, row.raw(unit).both(0)) * h);
  });
}

template <class T>
__device__ __forceinline__ void next_states(const VariedRow<T>& row, const StatesBefore<T>& before,
                                            const RowNorms<Compute<T>>& norms, Index unit,
                                            Compute<T> (&next)[kMaxStateVectors]) {
  using C = Compute<T>;
  const Variation<C>& v = row.v;
  const auto units = row.units(unit);
  const GateSums<C> gates = units.normalised(row.raw(unit), norms);
  if (v.maths == Maths::slstm) {
    const ExponentialStep<C> step(gates, before(1, unit), before(2, unit), before(3, unit));
    next[0] = step.output(), next[1] = step.c, next[2] = step.n, next[3] = step.m;
  } else if (v.maths == Maths::lstm || v.maths == Maths::coupled_lstm) {
    LstmStep<C> step;
    const Peepholes<C> p = units.peepholes();
    const bool is_known = v.cell_norm != CellNorm::none;  // norms_of_row has put it there
    const C carried = is_known ? before.s.carried[row.state(unit)] : step.carry(v, gates, p, before(1, unit));
    C before_clip, shown;
    units.settle(norms, carried, before_clip, next[1], shown);
    next[0] = step.show(v, gates, p, next[1], shown);
  } else {
    const C h = before(0, unit);
    next[0] = v.attends() ? AttendedStep<C>(v, gates).next(h, row.weight())
                          : next_output(v, units.with_unit(gates, h * row.factor(unit)), h);
  }
}

template <class T>
__device__ __forceinline__ RowNorms<Compute<T>> norms_of_row(const VariedForwardStep<T>& s,
                                                             const VariedRow<T>& row,
                                                             const StatesBefore<T>& before) {
  using C = Compute<T>;
  const Variation<C>& v = row.v;
  RowNorms<C> norms{};
  if (v.gate_norm != GateNorm::none) {
    const bool joint = v.gate_norm == GateNorm::joint;
    row.template moments<2>({v.gates, v.gate_norm == GateNorm::separate ? v.gates : 0},
                            [&](Index unit, C(&x)[2][kMaxGates]) {
                              const GateSums<C> raw = row.raw(unit);
                              RNNFUSED_UNROLL
                              for (int g = 0; g < kMaxGates; ++g)
                                x[0][g] = joint ? raw.both(g) : raw.x[g], x[1][g] = raw.h[g];
                            },
                            {&norms.x, &norms.h});
  }
  if (v.cell_norm == CellNorm::none) return norms;
  for_units(s.hidden, [&](Index unit) {
    LstmStep<C> step;
    const auto units = row.units(unit);
    const C carried =
        step.carry(v, units.normalised(row.raw(unit), norms), units.peepholes(), before(1, unit));
    s.carried[row.state(unit)] = carried;  // read again by this thread alone
  });
  row.template moments<1>(
      {1},
      [&](Index unit, C(&x)[1][kMaxGates]) { x[0][0] = row.units(unit).to_norm(s.carried[row.state(unit)]); },
      {&norms.c});
  return norms;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kVariedBlocks)
    varied_forward(const __grid_constant__ VariedForwardStep<T> s) {
  using C = Compute<T>;
  const int d = int(blockIdx.z);
  const Index b = blockIdx.x, H = s.hidden;
  const ForwardRows at = of_direction(s.at, d);
  if (b >= at.active) return;
  const Index y = (at.row + b) * s.directions * H + d * H;
  if (!s.mask.is_there(at.step, b)) {
    for_units(H, [&](Index unit) {
      s.y[y + unit] = narrow<T>(C(0));
      if (s.cells) s.cells[y + unit] = narrow<T>(C(0));
    });
    return;
  }
  const Origin origin = s.mask.origin(d, at.step, b, at.before);
  const bool zeroed = s.mask.ends_in_zero(d, at.step, b), starts_anew = origin == Origin::zero;
  const VariedRow<T> row(s, at.step, at.row + b, at.chunk_row + b, s.recurrent && !starts_anew);
  const Variation<C>& v = row.v;
  const StatesBefore<T> before{s, row, origin};
  const RowNorms<C> norms = norms_of_row(s, row, before);
  if (s.norms) row.store_norms(norms);
  for_units(H, [&](Index unit) {
    C next[kMaxStateVectors] = {};
    next_states(row, before, norms, unit, next);
    if (s.tapes_sums) {
      C* const taped = s.sums + d * s.sums_stride + ((at.chunk_row + b) * 2 + 1) * v.gates * H + unit;
      for (int g = 0; g < v.gates; ++g) taped[g * H] = row.recurrent ? row.recurrent[g * H + unit] : C(0);
    }
    RNNFUSED_UNROLL
    for (int k = 1; k < kMaxStateVectors; ++k) {
      if (k >= v.states) continue;
      next[k] = mixed(v, k, row.kept(k, unit), before(k, unit), next[k]);
      s.c[row.second(k, unit)] = zeroed ? C(0) : next[k];
      if (s.cell) s.cell[row.cell(k, at.row + b, unit)] = next[k];
    }
    if (s.cells) s.cells[y + unit] = narrow<T>(next[1]);
    const C h = mixed(v, 0, row.kept(0, unit), before(0, unit), next[0]);
    s.h[row.state(unit)] = narrow<T>(zeroed ? C(0) : h);
    if (s.h_wide) s.h_wide[row.state(unit)] = h;
    if (s.operand) s.operand[row.state(unit)] = narrow<T>(h * row.factor(unit));
    s.y[y + unit] = narrow<T>(h);
  });
}

// ---- Backward

template <class T>
struct VariedBackwardStep : VariedStep<T> {
  BackwardRows at[kMaxDirections];
  Index step_after[kMaxDirections];  // that of the next position
  SumRows places;
  const T* y;  // [rows, D * H]
  const T* h0;
  const Compute<T>* c0;    // [D, B, states - 1, H]
  const Compute<T>* cell;  // [D, rows, states - 1, H]
  const T* dy;             // [rows, D * H] or null
  const T* dcells;         // [rows, D * H] or null
  Compute<T>* dh;          // [D, B, H]
  Compute<T>* dc;          // [D, B, states - 1, H]
  T* gradients;            // of the sums [D, rows, 2, G, H]
  Index gradients_stride;
  T* now;              // of this position, those of what h feeds [D, B, G, H]
  Compute<T>* inner;   // of the normalised sums [D, B, 2, G, H], where gates are normalised
  Compute<T>* dshown;  // of what the norm of c gave, and of o's sum [D, B, 2, H]
  Compute<T>* dreset;  // of r h, the last gate's product [D, B, H]
  T* reset;            // r h of every row [D, rows, H], for the last gate's weights
  T* dx;               // [rows, x_stride] or null
  Compute<T>* totals;  // of the parameters' gradients, row by row of the batch [D, B, sums, 2, H]
};

template <class T>
__device__ Compute<T> state_before(const VariedBackwardStep<T>& s, const VariedRow<T>& row,
                                   const BackwardRows& at, Origin origin, int vector, Index unit) {
  if (origin == Origin::zero) return Compute<T>(0);
  const bool initial = origin == Origin::initial;
  const Index before = at.row_before + row.b;
  if (vector > 0) return initial ? s.c0[row.second(vector, unit)] : s.cell[row.cell(vector, before, unit)];
  return widen(initial ? s.h0[row.state(unit)]
                       : s.y[(before * s.directions + row.direction) * s.hidden + unit]);
}

template <class T>
__device__ void add_to_total(const VariedBackwardStep<T>& s, const VariedRow<T>& row, int sum, Index unit,
                             Compute<T> x) {
  using C = Compute<T>;
  C* const at = s.totals + ((row.direction * s.batch + row.b) * s.places.count + sum) * 2 * s.hidden + unit;
  ExactSum<C> total{at[0], at[s.hidden]};
  total.add(x);
  at[0] = total.total, at[s.hidden] = total.lost;
}

// Adds what a unit gives to the sums over the row that a norm's backward needs, and to the totals of its
// gains and shifts.
template <class T>
__device__ void add_norm_sums(const VariedBackwardStep<T>& s, const VariedRow<T>& row, int first_sum,
                              int gates, int gate, Index unit, Compute<T> d, Compute<T> normal,
                              Compute<T> weight, Compute<T> (&sums)[2]) {
  const Compute<T> scaled = d * weight;
  sums[0] += scaled;
  sums[1] = fma(scaled, normal, sums[1]);
  add_to_total(s, row, first_sum + gate, unit, d * normal);
  add_to_total(s, row, first_sum + gates + gate, unit, d);
}

template <class C>
__device__ NormSums<C> row_means(C (&sums)[2], Index count) {
  sum_over_block(sums);
  return {sums[0] / C(count), sums[1] / C(count)};
}

template <class T>
__device__ void store_gradient(const VariedBackwardStep<T>& s, const VariedRow<T>& row, bool goes_on,
                               int gate, Index unit, Compute<T> x, Compute<T> h) {
  const Index H = s.hidden, G = row.v.gates;
  T* const gradients = s.gradients + row.direction * s.gradients_stride + (row.row * 2 * G + gate) * H + unit;
  gradients[0] = narrow<T>(x);
  gradients[G * H] = narrow<T>(h);
  s.now[((row.direction * s.batch + row.b) * G + gate) * H + unit] = narrow<T>(goes_on ? h : Compute<T>(0));
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kVariedBlocks)
    varied_backward(const __grid_constant__ VariedBackwardStep<T> s) {
  using C = Compute<T>;
  const int d = int(blockIdx.z);
  const Index b = blockIdx.x, H = s.hidden;
  const BackwardRows at = of_direction(s.at, d);
  if (b >= at.active && b >= at.after) return;
  const VariedRow<T> row(s, at.step, at.row + b, at.gates_row + b, false);
  const Variation<C>& v = row.v;
  const bool there = b < at.active && s.mask.is_there(at.step, b);
  const bool went_on = b < at.after && s.mask.is_there(of_direction(s.step_after, d), b);
  const bool zeroed = there && s.mask.ends_in_zero(d, at.step, b);
  // Of h after the position: what the next one hands back, or the caller's.
  const auto handed_back = [&](Index unit) {
    const C held = zeroed ? C(0) : s.dh[row.state(unit)];
    if (!went_on) return held;
    const C product = s.recurrent ? s.recurrent[row.state(unit)] : C(0);
    return clamp(fma(product, row.factor(unit), held), v.grad_clip);
  };
  if (!there) {
    for_units(H, [&](Index unit) {
      s.dh[row.state(unit)] = handed_back(unit);
      // What lies beyond a length takes part in the products all the same.
      if (b >= at.active) return;
      for (int g = 0; g < v.gates; ++g) store_gradient(s, row, false, g, unit, C(0), C(0));
      if (s.reset) s.reset[(d * s.rows + row.row) * H + unit] = narrow<T>(C(0));
    });
    if (b < at.active && s.dx && v.attends() && threadIdx.x == 0)
      s.dx[row.row * s.x_stride + s.x_stride - 1] = narrow<T>(C(0));
    return;
  }
  const Origin origin = s.mask.origin(d, at.step, b, at.before);
  const bool goes_on = origin != Origin::zero;
  const RowNorms<C> norms = row.load_norms();
  const auto before = [&](int vector, Index unit) { return state_before(s, row, at, origin, vector, unit); };
  const Index y = (row.row * s.directions + d) * H;
  const auto dh_of = [&](Index unit) { return handed_back(unit) + (s.dy ? widen(s.dy[y + unit]) : C(0)); };
  const auto dc_of = [&](Index unit) {
    return (zeroed ? C(0) : s.dc[row.second(1, unit)]) + (s.dcells ? widen(s.dcells[y + unit]) : C(0));
  };

  NormSums<C> of_c{};
  C* const dshown = s.dshown + (d * s.batch + b) * 2 * H;
  if (v.cell_norm != CellNorm::none) {
    C sums[2] = {};
    for_units(H, [&](Index unit) {
      const auto units = row.units(unit);
      const auto of = units.shown(norms, units.normalised(row.taped(unit), norms), before(1, unit));
      C dh = dh_of(unit), dc = dc_of(unit), da_o;
      split(v, 0, row.kept(0, unit), dh), split(v, 1, row.kept(1, unit), dc);
      const C given = units.unshow(of, dh, dc, da_o);
      dshown[unit] = given, dshown[H + unit] = da_o;
      add_norm_sums(s, row, s.places.norm_c, 1, 0, unit, given, units.normal_c(of, norms),
                    units.norm_c_weight(), sums);
    });
    of_c = row_means(sums, H);
  }

  C of_weight[1] = {}, sums_x[2] = {}, sums_h[2] = {};
  C* const inner = s.inner + (d * s.batch + b) * 2 * v.gates * H;
  for_units(H, [&](Index unit) {
    const auto units = row.units(unit);
    const GateSums<C> raw = row.taped(unit), gates = units.normalised(raw, norms);
    GateSums<C> da{};
    C dh = dh_of(unit);
    C carry = split(v, 0, row.kept(0, unit), dh);
    if (v.maths == Maths::slstm) {
      C dstates[kMaxStateVectors] = {};
      RNNFUSED_UNROLL
      for (int k = 1; k < kMaxStateVectors; ++k) dstates[k] = zeroed ? C(0) : s.dc[row.second(k, unit)];
      const C c = before(1, unit), n = before(2, unit);
      ExponentialStep<C>(gates, c, n, before(3, unit)).gradient(c, n, dh, dstates, da);
      RNNFUSED_UNROLL
      for (int k = 1; k < kMaxStateVectors; ++k)
        s.dc[row.second(k, unit)] = goes_on ? clamp(dstates[k], v.grad_clip) : C(0);
    } else if (v.maths == Maths::lstm || v.maths == Maths::coupled_lstm) {
      const auto of = units.shown(norms, gates, before(1, unit));
      C dc = dc_of(unit), da_o, ds;
      const C kept = split(v, 1, row.kept(1, unit), dc);
      if (v.cell_norm == CellNorm::none) {
        ds = units.unshow(of, dh, dc, da_o);
      } else {
        da_o = dshown[H + unit];
        ds = units.unnormed_c(of, norms, of_c, dc, da_o, dshown[unit]);
      }
      const C handed = units.uncarry(of, ds, da_o, da) + kept;
      s.dc[row.second(1, unit)] = goes_on ? clamp(handed, v.grad_clip) : C(0);
      if (v.peephole) {
        add_to_total(s, row, s.places.peephole, unit, da.h[0] * of.step.c_prev);
        if (v.peepholes() > 2) add_to_total(s, row, s.places.peephole + 1, unit, da.h[1] * of.step.c_prev);
        add_to_total(s, row, s.places.peephole + v.peepholes() - 1, unit, da_o * of.step.c);
      }
    } else if (v.attends()) {
      C dweight;
      carry = carry + AttendedStep<C>(v, gates).gradient(v, before(0, unit), row.weight(), dh, da, dweight);
      of_weight[0] += dweight;
    } else {
      const C h = before(0, unit), factor = row.factor(unit), entered = h * factor;
      carry = carry + output_gradient(v, units.with_unit(gates, entered), h, dh, da);
      if (v.unit) {
        add_to_total(s, row, s.places.unit, unit, da.h[0] * entered);
        carry = fma(da.h[0] * factor, units.unit(), carry);
      }
      if (s.reset)
        s.reset[(d * s.rows + row.row) * H + unit] = narrow<T>(reset_gate(v, raw.both(0)) * entered);
    }
    s.dh[row.state(unit)] = goes_on ? carry : C(0);
    if (v.gate_norm == GateNorm::none) {
      for (int g = 0; g < v.gates; ++g) store_gradient(s, row, goes_on, g, unit, da.x[g], da.h[g]);
      return;
    }
    const GateSums<C> normal = units.normal(raw, norms);
    for (int g = 0; g < v.gates; ++g) {
      inner[g * H + unit] = da.x[g], inner[(v.gates + g) * H + unit] = da.h[g];
      add_norm_sums(s, row, s.places.norm_x, v.gates, g, unit, da.x[g], normal.x[g], units.norm_ih_weight(g),
                    sums_x);
      if (v.gate_norm == GateNorm::separate)
        add_norm_sums(s, row, s.places.norm_h, v.gates, g, unit, da.h[g], normal.h[g],
                      units.norm_hh_weight(g), sums_h);
    }
  });

  if (v.attends() && s.dx) {
    sum_over_block(of_weight);
    if (threadIdx.x == 0) s.dx[row.row * s.x_stride + s.x_stride - 1] = narrow<T>(of_weight[0]);
  }
  if (v.gate_norm == GateNorm::none) return;
  const NormSums<C> of_x = row_means(sums_x, v.gates * H);
  const bool joint = v.gate_norm == GateNorm::joint, separate = v.gate_norm == GateNorm::separate;
  NormSums<C> of_h{};
  if (separate) of_h = row_means(sums_h, v.gates * H);
  for_units(H, [&](Index unit) {
    const auto units = row.units(unit);
    const GateSums<C> normal = units.normal(row.taped(unit), norms);
    for (int g = 0; g < v.gates; ++g) {
      const C x = unnormed(norms.x, of_x, inner[g * H + unit], units.norm_ih_weight(g), normal.x[g]);
      C h = joint ? x : inner[(v.gates + g) * H + unit];
      if (separate) h = unnormed(norms.h, of_h, h, units.norm_hh_weight(g), normal.h[g]);
      store_gradient(s, row, goes_on, g, unit, x, h);
    }
  });
}

// Of r h, whose gradient a product has made, comes what reaches the reset gate and h. The gates' other
// gradients are there.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    varied_unreset(const __grid_constant__ VariedBackwardStep<T> s) {
  using C = Compute<T>;
  const int d = int(blockIdx.z);
  const Index b = blockIdx.x;
  const BackwardRows at = of_direction(s.at, d);
  if (b >= at.active || !s.mask.is_there(at.step, b)) return;
  const VariedRow<T> row(s, at.step, at.row + b, at.gates_row + b, false);
  const Origin origin = s.mask.origin(d, at.step, b, at.before);
  const bool goes_on = origin != Origin::zero;
  for_units(s.hidden, [&](Index unit) {
    const C sum = row.taped(unit).both(0), factor = row.factor(unit), product = s.dreset[row.state(unit)];
    const C h = state_before(s, row, at, origin, 0, unit) * factor;
    const C dr = reset_gradient(row.v, sum, h, product);
    store_gradient(s, row, goes_on, 0, unit, dr, dr);
    if (goes_on) s.dh[row.state(unit)] += product * reset_gate(row.v, sum) * factor;
  });
}

// ---- What the products over all rows read, and the parameters' gradients

// What the rows' h is multiplied with on its way into the product. blockIdx.z counts positions.
template <class T>
struct Dropped {
  Variation<Compute<T>> variation;
  Index row[kGathered], active[kGathered];  // of a position
  Index hidden;
  T* h;  // [rows, H]
};
template <class T>
__global__ void __launch_bounds__(kBlockThreads) drop_previous(const __grid_constant__ Dropped<T> s) {
  const Index b = blockIdx.x;
  if (b >= s.active[blockIdx.z]) return;
  const Variation<Compute<T>>& v = s.variation;
  const Index number = dropped_as(v, b);
  T* const h = s.h + (s.row[blockIdx.z] + b) * s.hidden;
  for_units(s.hidden, [&](Index unit) {
    const bool dropped = philox_word(v.seed, Draw::recurrent_dropout, v.direction, uint64_t(number),
                                     uint32_t(unit)) < philox_threshold(v.recurrent_dropout);
    h[unit] = narrow<T>(widen(h[unit]) * dropout_factor(v, dropped));
  });
}

template <class C>
struct VariedTotals {
  VariationParameters<C> out[kMaxDirections];
  SumRows places;
  int gates, peepholes;
  Index batch, hidden;
  const C* totals;  // [D, B, sums, 2, H]
};

// Where the total of a row of sums goes, or null.
template <class C>
__device__ C* destination(const VariedTotals<C>& t, int direction, int sum) {
  const VariationParameters<C>& d = t.out[direction];
  const SumRows& p = t.places;
  const auto row_of = [&](C* to, int first, int rows, C*& found) {
    if (to && sum >= first && sum < first + rows) found = to + (sum - first) * t.hidden;
  };
  C* found = nullptr;
  row_of(d.peephole, p.peephole, t.peepholes, found);
  row_of(d.norm_ih_weight, p.norm_x, t.gates, found),
      row_of(d.norm_ih_bias, p.norm_x + t.gates, t.gates, found);
  row_of(d.norm_hh_weight, p.norm_h, t.gates, found),
      row_of(d.norm_hh_bias, p.norm_h + t.gates, t.gates, found);
  row_of(d.norm_c_weight, p.norm_c, 1, found), row_of(d.norm_c_bias, p.norm_c + 1, 1, found);
  row_of(d.unit, p.unit, 1, found);
  return found;
}

// blockIdx.x is the row of sums.
template <class C>
__global__ void __launch_bounds__(kBlockThreads) store_totals(const __grid_constant__ VariedTotals<C> t) {
  const int d = int(blockIdx.z), sum = int(blockIdx.x);
  C* const out = destination(t, d, sum);
  if (!out) return;
  for_units(t.hidden, [&](Index unit) {
    ExactSum<C> all{};
    for (Index b = 0; b < t.batch; ++b) {
      const C* const of = t.totals + ((d * t.batch + b) * t.places.count + sum) * 2 * t.hidden + unit;
      all.add(of[0]);
      all.lost = all.lost + of[t.hidden];
    }
    out[unit] = all.value();
  });
}

}  // namespace rnnfused::cuda
