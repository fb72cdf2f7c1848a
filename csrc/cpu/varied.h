// The stage of a layer with options (core/variation.h) between the product of a step and the next one. To the
// products such a layer is one of G H units with a gate each (Staged); once all of a step's sums are there,
// the members share the hidden units, and make states of the sums of all gates. What is normalised over all
// units takes one more meeting. Norms are combined from blocks of units, in order, whoever has which.
#pragma once

#include <cmath>
#include <cstring>

#include "cells/varied.h"
#include "core/philox.h"
#include "core/stream.h"
#include "cpu/staged.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace rnnfused::RNNFUSED_ISA {

// What is kept of every row beside the sums.
template <class T>
struct VariedTape {
  Index units = 0, rows = 0;
  // States after h; h as it enters the product, where dropout changes it; r h; mean and scale of the norms.
  T* cell_of(int state, Index row) const { return cell + ((state - 1) * rows + row) * units; }
  T *cell = nullptr, *operand = nullptr, *reset = nullptr, *norms = nullptr;

  // `data` is where the sums end; null keeps nothing.
  VariedTape() = default;
  VariedTape(const Variation<T>& v, Index of_rows, T* data) : units(v.unit_scalars), rows(of_rows) {
    cell = data;
    operand = data ? cell + (v.states - 1) * rows * units : data;
    reset = data && v.drops() ? operand + rows * units : operand;
    norms = data && v.resets() ? reset + rows * units : reset;
  }
};

// 1 for the units of some blocks whose word is below a share p of all, else 0; at out + unit.
template <class T>
void draw(const Variation<T>& v, Draw what, Index number, Range blocks, double p, T* out) {
  constexpr Index L = kLanes<T>;
  const uint64_t threshold = philox_threshold(p);
  for (Index group = blocks.first * L / kPhiloxGroup; group * kPhiloxGroup < blocks.last * L; ++group) {
    uint32_t words[kPhiloxGroup];
    philox_group(v.seed, what, v.direction, uint64_t(number), uint32_t(group), words);
    const Index start = group * kPhiloxGroup, end = start + kPhiloxGroup;
    const Index first = start > blocks.first * L ? start : blocks.first * L;
    const Index last = end < blocks.last * L ? end : blocks.last * L;
    for (Index u = first; u < last; ++u) out[u] = words[u - start] < threshold ? T(1) : T(0);
  }
}

// The factors of a sequence's h on its way into the product, the same at all steps. A sequence's rows all
// have its number; of one without rows nothing is multiplied.
template <class T>
void draw_factors(const Variation<T>& v, const Stream& stream, Index b, Range blocks, T* out) {
  Index number = 0;
  for (Index s = 0; s < stream.shape.steps; ++s) {
    if (b >= stream.active(s)) continue;
    number = v.number_of(stream.row(s, b)) % v.batch;
    break;
  }
  draw(v, Draw::recurrent_dropout, number, blocks, v.recurrent_dropout, out);
  const T scale = v.recurrent_dropout < 1 ? T(1 / (1 - v.recurrent_dropout)) : T(0);
  for (Index u = blocks.first * kLanes<T>; u < blocks.last * kLanes<T>; ++u) out[u] = (T(1) - out[u]) * scale;
}

template <class T>
class VariedStage {
 protected:
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  // A sum, and the sum of the squared differences from its mean, of each of three quantities.
  static constexpr Index kPartials = 2, kQuantities = 3;

 public:
  VariedStage() = default;
  VariedStage(const Variation<T>& v, const Stream& stream, int member, int members, Arena& arena)
      : v_(&v),
        stream_(&stream),
        units_(v.unit_scalars),
        blocks_(units_ / L),
        mine_(share(blocks_, members, member)) {
    const Index batch = stream.batch();
    factors_ = v.drops() ? arena.take<T>(batch * units_) : nullptr;
    partials_ = v.norms() || v.attends() ? arena.take<T>(batch * blocks_ * kQuantities * kPartials) : nullptr;
    for (int state = 0; state < kMaxStates; ++state) kept_[state] = v.drawn ? arena.take<T>(units_) : nullptr;
  }

 protected:
  bool is_lstm() const { return v_->maths == Maths::lstm || v_->maths == Maths::coupled_lstm; }
  // A sequence's part of what callers have for state vectors.
  template <class Row>
  Row* vector_of(const Rows<Row> (&of)[kMaxStates], int state, Index sequence) const {
    Row* const found = of[state > 0].find(sequence);
    return found && state > 1 ? found + (state - 1) * v_->hidden : found;
  }
  Index lanes(Index block) const { return lanes_in<T>(block, v_->hidden); }
  V parameter(const T* rows, Index row, Index block, T otherwise) const {
    return rows ? load<V>(rows + row * v_->hidden + block * L, lanes(block)) : broadcast<V>(otherwise);
  }
  Peepholes<V> peepholes(Index block) const {
    if (!v_->peephole) return {V{}, V{}, V{}};
    const bool coupled = v_->maths == Maths::coupled_lstm;
    return {parameter(v_->peephole, 0, block, 0), coupled ? V{} : parameter(v_->peephole, 1, block, 0),
            parameter(v_->peephole, v_->peepholes() - 1, block, 0)};
  }

  // ---- What is drawn

  // Before mixed() or split(): which of this member's units keep what they were at a row.
  void draw_kept(Index row) const {
    if (!v_->drawn) return;
    for (int state = 0; state < kMaxStates; ++state) {
      if (!(v_->zoneout[state] > 0)) continue;
      draw(*v_, state == 0 ? Draw::zoneout_h : Draw::zoneout_c, v_->number_of(row), mine_, v_->zoneout[state],
           kept_[state]);
    }
  }
  V mixed(int state, Index block, V before, V next) const {
    const T p = v_->zoneout_of(state);
    if (!(p > 0)) return next;
    if (!v_->drawn) return fma(broadcast<V>(p), before, (T(1) - p) * next);
    return load<V>(kept_[state] + block * L) > T(0) ? before : next;
  }
  // Of a gradient what goes to the value before, and leaves the rest.
  V split(int state, Index block, V& d) const {
    const T p = v_->zoneout_of(state);
    if (!(p > 0)) return V{};
    if (!v_->drawn) {
      const V kept = p * d;
      d = (T(1) - p) * d;
      return kept;
    }
    const V flags = load<V>(kept_[state] + block * L), all = d;
    d = flags > T(0) ? V{} : all;
    return flags > T(0) ? all : V{};
  }

  // What an h of a sequence is multiplied with on its way into the product.
  V factor_of(Index b, Index block) const {
    return factors_ ? load<V>(factors_ + b * units_ + block * L) : broadcast<V>(1);
  }

  // ---- Norms

  // Zero beyond the last unit.
  V own_lanes(V v, Index block) const { return first_lanes(v, lanes(block)); }
  T* partial(Index b, Index block, int quantity) const {
    return partials_ + ((b * blocks_ + block) * kQuantities + quantity) * kPartials;
  }
  // Of `count` vectors of a block.
  void store_moments(Index b, Index block, int quantity, const V* v, int count) const {
    V sum{}, squares{};
    for (int g = 0; g < count; ++g) sum = sum + v[g];
    T* const out = partial(b, block, quantity);
    out[0] = sum_of_lanes(own_lanes(sum, block));
    const T mean = out[0] / T(count * lanes(block));
    for (int g = 0; g < count; ++g) {
      const V difference = own_lanes(v[g] - mean, block);
      squares = fma(difference, difference, squares);
    }
    out[1] = sum_of_lanes(squares);
  }
  struct Norm {
    T mean, scale;
    RNNFUSED_HD V operator()(V x) const { return (x - mean) * scale; }
  };
  // Chan, Golub and LeVeque (1983), block by block.
  Norm combined(Index b, int quantity, int count) const {
    T n = 0, mean = 0, squares = 0;
    for (Index block = 0; block < blocks_; ++block) {
      const T* const of = partial(b, block, quantity);
      const T more = T(count * lanes(block)), total = n + more, difference = of[0] / more - mean;
      mean += difference * (more / total);
      squares += of[1] + difference * difference * (n * (more / total));
      n = total;
    }
    return {mean, T(1) / std::sqrt(squares / n + T(1e-5))};
  }
  struct RowNorms {
    Norm x, h, c;
  };
  void store_norms(const RowNorms& norms, T* out) const {
    if (mine_.first > 0) return;
    const T all[] = {norms.x.mean, norms.x.scale, norms.h.mean, norms.h.scale, norms.c.mean, norms.c.scale};
    memcpy(out, all, sizeof all);
  }
  static RowNorms load_norms(const T* in) { return {{in[0], in[1]}, {in[2], in[3]}, {in[4], in[5]}}; }

  // The sums of a block's gates as they come from the products. sums(block of a gate) -> [2, lanes].
  template <class SumsOf>
  GateSums<V> raw_sums(SumsOf sums, Index block) const {
    GateSums<V> all{};
    for (int g = 0; g < v_->gates; ++g) {
      const T* const of = sums(g * blocks_ + block);
      all.x[g] = load<V>(of), all.h[g] = load<V>(of + L);
    }
    return all;
  }
  // Of the IndRNN, whose h enters unit by unit.
  GateSums<V> with_unit(GateSums<V> sums, V h, Index block) const {
    if (v_->unit) sums.h[0] = fma(parameter(v_->unit, 0, block, 0), h, sums.h[0]);
    return sums;
  }
  // As the maths takes them.
  GateSums<V> normalised(const GateSums<V>& raw, const RowNorms& norms, Index block) const {
    if (v_->gate_norm == GateNorm::none) return raw;
    GateSums<V> all{};
    const bool joint = v_->gate_norm == GateNorm::joint;
    for (int g = 0; g < v_->gates; ++g) {
      const V x = norms.x(joint ? raw.both(g) : raw.x[g]);
      all.x[g] = fma(x, parameter(v_->norm_ih_weight, g, block, 1), parameter(v_->norm_ih_bias, g, block, 0));
      if (joint) continue;
      all.h[g] = raw.h[g];
      if (v_->gate_norm == GateNorm::input) continue;
      all.h[g] = fma(norms.h(raw.h[g]), parameter(v_->norm_hh_weight, g, block, 1),
                     parameter(v_->norm_hh_bias, g, block, 0));
    }
    return all;
  }
  void store_gate_moments(Index b, Index block, const GateSums<V>& raw) const {
    if (v_->gate_norm != GateNorm::joint) {
      store_moments(b, block, 0, raw.x, v_->gates);
      if (v_->gate_norm == GateNorm::separate) store_moments(b, block, 1, raw.h, v_->gates);
    } else {
      V both[kMaxGates];
      for (int g = 0; g < v_->gates; ++g) both[g] = raw.both(g);
      store_moments(b, block, 0, both, v_->gates);
    }
  }
  V norm_of_c(const RowNorms& norms, V c, Index block) const {
    return fma(norms.c(c), parameter(v_->norm_c_weight, 0, block, 1),
               parameter(v_->norm_c_bias, 0, block, 0));
  }
  // c' and what h' is made from, of f c + i g.
  void settle(const RowNorms& norms, V carried, Index block, V& before_clip, V& c, V& shown) const {
    before_clip = v_->cell_norm == CellNorm::carried ? norm_of_c(norms, carried, block) : carried;
    c = clamp(before_clip, v_->cell_clip);
    shown = v_->cell_norm == CellNorm::output ? norm_of_c(norms, c, block) : c;
  }

  const Variation<T>* v_ = nullptr;
  const Stream* stream_ = nullptr;
  Index units_ = 0, blocks_ = 0;
  Range mine_{};              // blocks of hidden units
  T* factors_ = nullptr;      // of h as it enters the product [batch, units]
  T* partials_ = nullptr;     // [batch, blocks, quantities, 2]
  T* kept_[kMaxStates] = {};  // flags of a row's units [units]
};

}  // namespace rnnfused::RNNFUSED_ISA
