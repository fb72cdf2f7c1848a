// The stage of a layer with options (core/variation.h) between the product of a step and the next one. To the
// products such a layer is one of G H units with a gate each (Staged); once all of a step's sums are there,
// the members share the hidden units, and make states of the sums of all gates. What is normalised over all
// units takes one more meeting. Norms are combined from blocks of units, in order, whoever has which.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cells/varied_units.h"
#include "core/philox.h"
#include "core/staged.h"
#include "core/stream.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace rnnfused::RNNFUSED_ISA {

// Which blocks of a layer's sums and of h its W_hh joins, where it joins only the units of a head: products
// leave out what is zero. Blocks that heads share belong to all of these. What a block is joined with decides
// where its sums begin, and so their bits: what is multiplied at once must be alike in it.
//
// A cell without options has one head, and what asks for several costs it nothing.
template <class Cell, class T>
class Heads {
 public:
  Heads() = default;
  Heads(const Variation<T>*, Index) {}

  static constexpr bool several() { return false; }
  static Range terms(Index) { return {}; }
  template <class Body>
  static RNNFUSED_HD void for_alike_sums(Index first, Index n, Body body) {
    body(first, n);
  }
  template <class Body>
  static RNNFUSED_HD void for_alike_outputs(Index first, Index n, Body body) {
    body(first, n);
  }
};

template <class T>
class Heads<Staged, T> {
  static constexpr Index L = kLanes<T>;

 public:
  Heads() = default;
  Heads(const Variation<T>* v, Index outputs)
      : hidden_(v->hidden),
        outputs_(outputs),
        units_(v->hidden),
        each_(outputs),
        blocks_(v->unit_scalars / L) {
    if (v->heads < 2) return;
    const Index units = v->hidden / v->heads, together = (kLeastUnits + units - 1) / units;
    if (together >= v->heads) return;
    several_ = true, units_ = together * units, each_ = together * (outputs / v->heads);
  }

  bool several() const { return several_; }
  // Of a gate's units.
  Index blocks() const { return blocks_; }

  // The part of h that feeds a block of the sums.
  Range terms(Index block) const {
    const Index from = block % blocks_ * L, end = from + L < hidden_ ? from + L : hidden_;
    const Index last = ((end - 1) / units_ + 1) * each_;
    return {from / units_ * each_, last < outputs_ ? last : outputs_};
  }
  // The blocks of each gate that a block of h feeds.
  Range fed(Index block) const {
    const Index from = block * L, end = from + L < outputs_ ? from + L : outputs_;
    const Index last = ((end - 1) / each_ + 1) * units_;
    return {from / each_ * units_ / L, blocks_of<T>(last < hidden_ ? last : hidden_)};
  }

  // Calls body(first, n) for runs of the n blocks of the sums, or of h, that are alike in it.
  template <class Body>
  void for_alike_sums(Index first, Index n, Body body) const {
    for_alike(first, n, body, [this](Index block) { return terms(block); });
  }
  template <class Body>
  void for_alike_outputs(Index first, Index n, Body body) const {
    for_alike(first, n, body, [this](Index block) { return fed(block); });
  }

 private:
  template <class Body, class JoinedOf>
  void for_alike(Index first, Index n, Body body, JoinedOf joined) const {
    if (!several_) return body(first, n);
    for (Index run = 1; n > 0; first += run, n -= run, run = 1) {
      const Range all = joined(first);
      while (run < n && joined(first + run).first == all.first && joined(first + run).last == all.last) ++run;
      body(first, run);
    }
  }

  // Of a product of fewer terms, beginning and ending take most of the time: small heads are multiplied
  // together.
  static constexpr Index kLeastUnits = 64;

  bool several_ = false;
  Index hidden_ = 0, outputs_ = 0;
  Index units_ = 0, each_ = 0;  // of what is multiplied together: units of a gate, and of h
  Index blocks_ = 0;
};

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

// 1 where a word is at most `last`, else 0.
template <class T>
RNNFUSED_HD Native<T> ones_up_to(uint32_t last, const uint32_t* words) {
  if constexpr (kLanes<T> == 1)
    return words[0] <= last ? T(1) : T(0);
  else {
    Vec<uint32_t, kLanes<T>> of;
    memcpy(&of, words, sizeof(of));
    return Native<T>{} - __builtin_convertvector(of <= last, Native<T>);
  }
}

// 1 for the units of some blocks whose word is below a share p of all, else 0; at out + unit.
template <class T>
void draw(const Variation<T>& v, Draw what, Index number, Range blocks, double p, T* out) {
  constexpr Index L = kLanes<T>;
  const Index from = blocks.first * L, to = blocks.last * L;
  const uint64_t threshold = philox_threshold(p);
  if (threshold == 0) return std::fill(out + from, out + to, T(0));
  for (Index group = from / kPhiloxGroup; group * kPhiloxGroup < to; ++group) {
    uint32_t words[kPhiloxGroup];
    philox_group(v.seed, what, v.direction, uint64_t(number), uint32_t(group), words);
    const Index start = group * kPhiloxGroup, end = start + kPhiloxGroup;
    for (Index u = start > from ? start : from; u < (end < to ? end : to); u += L)
      store(out + u, ones_up_to<T>(uint32_t(threshold - 1), words + (u - start)));
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
  for (Index u = blocks.first * kLanes<T>; u < blocks.last * kLanes<T>; ++u)
    out[u] = dropout_factor(v, out[u] > T(0));
}

template <class T>
class VariedStage {
 protected:
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  // A sum, and the sum of the squared differences from its mean, of each of three quantities.
  static constexpr Index kPartials = 2, kQuantities = kRowNorms;

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
  // What units of a block take of the variation.
  struct OfBlock {
    const VariedStage* stage;
    Index block;
    V operator()(const T* rows, Index row, T otherwise) const {
      return rows ? load<V>(rows + row * stage->v_->hidden + block * L, stage->lanes(block))
                  : broadcast<V>(otherwise);
    }
  };
  using Units = VariedUnits<V, OfBlock>;
  Units units(Index block) const { return {*v_, OfBlock{this, block}}; }

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
  V kept(int state, Index block) const {
    return v_->drawn && v_->zoneout_of(state) > 0 ? load<V>(kept_[state] + block * L) : V{};
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
  // Chan, Golub and LeVeque (1983), block by block.
  Norm<T> combined(Index b, int quantity, int count) const {
    T n = 0, mean = 0, squares = 0;
    for (Index block = 0; block < blocks_; ++block) {
      const T* const of = partial(b, block, quantity);
      const T more = T(count * lanes(block)), total = n + more, difference = of[0] / more - mean;
      mean += difference * (more / total);
      squares += of[1] + difference * difference * (n * (more / total));
      n = total;
    }
    return {mean, T(1) / std::sqrt(squares / n + T(kNormEps))};
  }
  void store_norms(const RowNorms<T>& norms, T* out) const {
    if (mine_.first > 0) return;
    const T all[] = {norms.x.mean, norms.x.scale, norms.h.mean, norms.h.scale, norms.c.mean, norms.c.scale};
    memcpy(out, all, sizeof all);
  }
  static RowNorms<T> load_norms(const T* in) { return {{in[0], in[1]}, {in[2], in[3]}, {in[4], in[5]}}; }

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

  const Variation<T>* v_ = nullptr;
  const Stream* stream_ = nullptr;
  Index units_ = 0, blocks_ = 0;
  Range mine_{};              // blocks of hidden units
  T* factors_ = nullptr;      // of h as it enters the product [batch, units]
  T* partials_ = nullptr;     // [batch, blocks, quantities, 2]
  T* kept_[kMaxStates] = {};  // flags of a row's units [units]
};

}  // namespace rnnfused::RNNFUSED_ISA
