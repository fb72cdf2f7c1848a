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
  draw(v, Draw::recurrent_dropout, number, blocks, double(v.recurrent_dropout), out);
  const T scale = v.recurrent_dropout < 1 ? T(1) / (T(1) - v.recurrent_dropout) : T(0);
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
    partials_ = norms() || v.attends() ? arena.take<T>(batch * blocks_ * kQuantities * kPartials) : nullptr;
    for (int state = 0; state < kMaxStates; ++state) kept_[state] = v.drawn ? arena.take<T>(units_) : nullptr;
  }

 protected:
  bool norms() const { return v_->gate_norm != GateNorm::none || v_->cell_norm != CellNorm::none; }
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
      draw(*v_, state == 0 ? Draw::zoneout_h : Draw::zoneout_c, v_->number_of(row), mine_,
           double(v_->zoneout[state]), kept_[state]);
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

  // ---- Norms

  static T sum_of_lanes(V v) {
    T all[L];
    store(all, v);
    for (Index n = L / 2; n > 0; n /= 2) {
      for (Index i = 0; i < n; ++i) all[i] += all[i + n];
    }
    return all[0];
  }
  V first_lanes(V v, Index block) const {
    const Index n = lanes(block);
    if (n >= L) return v;
    T all[L];
    store(all, v);
    return load<V>(all, n);
  }
  T* partial(Index b, Index block, int quantity) const {
    return partials_ + ((b * blocks_ + block) * kQuantities + quantity) * kPartials;
  }
  // Of `count` vectors of a block.
  void store_moments(Index b, Index block, int quantity, const V* v, int count) const {
    V sum{}, squares{};
    for (int g = 0; g < count; ++g) sum = sum + v[g];
    T* const out = partial(b, block, quantity);
    out[0] = sum_of_lanes(first_lanes(sum, block));
    const T mean = out[0] / T(count * lanes(block));
    for (int g = 0; g < count; ++g) {
      const V difference = first_lanes(v[g] - mean, block);
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

template <class T>
class VariedForward : VariedStage<T> {
  using Base = VariedStage<T>;
  using Base::L, Base::v_, Base::stream_, Base::units_, Base::mine_, Base::lanes;
  using typename Base::RowNorms;
  using typename Base::V;

 public:
  VariedForward() = default;
  VariedForward(const ForwardArgs<T>& args, const Stream& stream, T* tape, int member, int members,
                Arena& arena)
      : Base(*args.variation, stream, member, members, arena),
        args_(&args),
        tape_(*v_, stream.shape.rows(), tape),
        taped_(tape != nullptr) {
    const Index batch = stream.batch();
    for (int state = 0; state < v_->states; ++state) states_[state] = arena.take<T>(batch * units_);
    if (v_->drops()) {
      start_ = arena.take<T>(batch * units_);
      if (!taped_) tape_.operand = arena.take<T>(stream.shape.rows() * units_);
    }
    if (v_->resets() && !taped_) tape_.reset = arena.take<T>(stream.shape.rows() * units_);
    if (v_->cell_norm == CellNorm::none) return;
    carried_ = arena.take<T>(batch * units_);
  }

  // The states to start from; the members meet after it.
  void prepare() const {
    for (Index b = 0; b < stream_->batch(); ++b) {
      if (start_) draw_factors(*v_, *stream_, b, mine_, this->factors_ + b * units_);
      for (int state = 0; state < v_->states; ++state) {
        const T* const initial = this->vector_of(args_->initial, state, stream_->sequence(b));
        for (Index block = mine_.first; block < mine_.last; ++block) {
          const V value = initial ? load<V>(initial + block * L, lanes(block)) : V{};
          store(state_of(state, b, block), value);
          if (state == 0 && start_) store(start_ + b * units_ + block * L, value * factor(b, block));
        }
      }
    }
  }

  // Where dropout changes what the product reads: that of sequence b at position s.
  const T* operand(Index s, Index b) const {
    const Index row = stream_->previous(s, b);
    return row >= 0 ? tape_.operand + row * units_ : start_ + b * units_;
  }
  bool drops() const { return v_->drops(); }

  // r h of position s, from the reset gates' sums: what the last gate's product reads. All meet before and
  // after.
  template <class SumsOf>
  void reset(Index s, SumsOf sums) const {
    for (Index b = 0; b < stream_->active(s); ++b) {
      T* const out = tape_.reset + stream_->row(s, b) * units_;
      for (Index block = mine_.first; block < mine_.last; ++block) {
        const T* const of = sums(b, block);
        const V h = load<V>(state_of(0, b, block)), r = reset_gate(*v_, load<V>(of) + load<V>(of + L));
        store(out + block * L, r * (start_ ? h * factor(b, block) : h));
      }
    }
  }
  const T* reset_of(Index s, Index b) const { return tape_.reset + stream_->row(s, b) * units_; }

  // Makes the states of position s. sums(b, block of a gate) -> [2, lanes]. All meet before and after it.
  template <class SumsOf>
  void run(Index s, SumsOf sums, Barrier& barrier) const {
    const Index rows = stream_->active(s);
    const bool norms_gates = v_->gate_norm != GateNorm::none;
    const auto of_row = [&](Index b) { return [&sums, b](Index block) { return sums(b, block); }; };
    if (norms_gates) {
      for (Index b = 0; b < rows; ++b) {
        for (Index block = mine_.first; block < mine_.last; ++block)
          this->store_gate_moments(b, block, this->raw_sums(of_row(b), block));
      }
      barrier.wait();
    }
    if (v_->cell_norm != CellNorm::none) {
      for (Index b = 0; b < rows; ++b) carry_row(b, norms_of_gates(b), of_row(b));
      barrier.wait();
    }
    for (Index b = 0; b < rows; ++b) finish_row(s, b, of_row(b));
  }

  void store_final() const {
    for (Index b = 0; b < stream_->batch(); ++b) {
      for (int state = 1; state < v_->states; ++state) {
        T* const to = this->vector_of(args_->final, state, stream_->sequence(b));
        for (Index block = mine_.first; to && block < mine_.last; ++block)
          store(to + block * L, load<V>(state_of(state, b, block)), lanes(block));
      }
    }
  }

 private:
  T* state_of(int state, Index b, Index block) const { return states_[state] + b * units_ + block * L; }
  V factor(Index b, Index block) const { return load<V>(this->factors_ + b * units_ + block * L); }

  RowNorms norms_of_gates(Index b) const {
    RowNorms norms{};
    if (v_->gate_norm != GateNorm::none) norms.x = this->combined(b, 0, v_->gates);
    if (v_->gate_norm == GateNorm::separate) norms.h = this->combined(b, 1, v_->gates);
    return norms;
  }

  // f c + i g of a row, and its moments.
  template <class SumsOf>
  void carry_row(Index b, const RowNorms& norms, SumsOf sums) const {
    for (Index block = mine_.first; block < mine_.last; ++block) {
      LstmStep<V> step;
      const V carried = step.carry(*v_, this->normalised(this->raw_sums(sums, block), norms, block),
                                   this->peepholes(block), load<V>(state_of(1, b, block)));
      store(carried_ + b * units_ + block * L, carried);
      const V normed = v_->cell_norm == CellNorm::carried ? carried : clamp(carried, v_->cell_clip);
      this->store_moments(b, block, 2, &normed, 1);
    }
  }

  template <class SumsOf>
  void finish_row(Index s, Index b, SumsOf sums) const {
    const Index row = stream_->row(s, b);
    RowNorms norms = norms_of_gates(b);
    if (v_->cell_norm != CellNorm::none) norms.c = this->combined(b, 2, 1);
    if (taped_ && this->norms()) this->store_norms(norms, tape_.norms + row * kNormScalars);
    this->draw_kept(row);
    const T weight = v_->attends() ? args_->x[row][stream_->shape.input] : T(0);
    for (Index block = mine_.first; block < mine_.last; ++block) {
      V next[kMaxStateVectors];
      step(norms, this->normalised(this->raw_sums(sums, block), norms, block), b, block, weight, next);
      for (int state = 0; state < v_->states; ++state) {
        T* const at = state_of(state, b, block);
        next[state] = this->mixed(state, block, load<V>(at), next[state]);
        store(at, next[state]);
        if (taped_ && state > 0) store(tape_.cell_of(state, row) + block * L, next[state]);
      }
      const Index at = block * L;
      store(args_->y[row] + at, next[0], lanes(block));
      if (start_) store(tape_.operand + row * units_ + at, next[0] * factor(b, block));
      if (args_->cells.data) store(args_->cells[row] + at, next[1], lanes(block));
    }
  }

  // weight: of the row, where the cell has one.
  void step(const RowNorms& norms, const GateSums<V>& gates, Index b, Index block, T weight,
            V (&next)[kMaxStateVectors]) const {
    if (v_->maths == Maths::slstm) {
      const ExponentialStep<V> step(gates, load<V>(state_of(1, b, block)), load<V>(state_of(2, b, block)),
                                    load<V>(state_of(3, b, block)));
      next[0] = step.output(), next[1] = step.c, next[2] = step.n, next[3] = step.m;
      return;
    }
    if (!this->is_lstm()) {
      const V h = load<V>(state_of(0, b, block));
      next[0] = v_->attends()
                    ? AttendedStep<V>(*v_, gates).next(h, weight)
                    : next_output(*v_, this->with_unit(gates, start_ ? h * factor(b, block) : h, block), h);
      return;
    }
    LstmStep<V> step;
    const Peepholes<V> p = this->peepholes(block);
    V carried = step.carry(*v_, gates, p, load<V>(state_of(1, b, block))), before_clip, shown;
    this->settle(norms, carried, block, before_clip, next[1], shown);
    next[0] = step.show(*v_, gates, p, next[1], shown);
  }

  const ForwardArgs<T>* args_ = nullptr;
  VariedTape<T> tape_{};
  bool taped_ = false;
  T* states_[kMaxStateVectors] = {};  // [batch, units]
  T* start_ = nullptr;                // the initial h as it enters the product [batch, units]
  T* carried_ = nullptr;              // [batch, units]
};

template <class T>
class VariedBackward : VariedStage<T> {
  using Base = VariedStage<T>;
  using Base::L, Base::v_, Base::stream_, Base::units_, Base::blocks_, Base::mine_, Base::lanes;
  using typename Base::Norm;
  using typename Base::RowNorms;
  using typename Base::V;

 public:
  VariedBackward() = default;
  // carry_h: what reaches each h beside the product and dy [batch, units], zeros beyond H.
  VariedBackward(const BackwardArgs<T>& args, const Stream& stream, const T* tape, T* carry_h, int member,
                 int members, Arena& arena)
      : Base(*args.variation, stream, member, members, arena),
        args_(&args),
        tape_(*v_, stream.shape.rows(), const_cast<T*>(tape)),
        carry_h_(carry_h),
        member_(member),
        members_(members) {
    const Index batch = stream.batch();
    dh_ = arena.take<T>(batch * units_);
    for (int state = 1; state < v_->states; ++state) carry_[state] = arena.take<T>(batch * units_);
    if (v_->gate_norm != GateNorm::none) inner_ = arena.take<T>(batch * units_ * 2 * v_->gates);
    if (v_->cell_norm != CellNorm::none) {
      dnormed_ = arena.take<T>(batch * units_);
      da_o_ = arena.take<T>(batch * units_);
    }
    sums_ = arena.take<T>(kSums * units_ * 2);
  }

  // The members meet after it.
  void prepare() const {
    for (Index sum = 0; sum < kSums; ++sum)
      memset(sum_of(sum, mine_.first), 0, size_t(mine_.size() * L * 2) * sizeof(T));
    for (Index b = 0; b < stream_->batch(); ++b) {
      if (v_->drops()) draw_factors(*v_, *stream_, b, mine_, this->factors_ + b * units_);
      for (int state = 1; state < v_->states; ++state) {
        const T* const from = this->vector_of(args_->dfinal, state, stream_->sequence(b));
        for (Index block = mine_.first; block < mine_.last; ++block)
          store(carry_of(state, b, block), from ? load<V>(from + block * L, lanes(block)) : V{});
      }
    }
  }

  // What one step hands back to an h: by the product, and directly.
  V handed_back(Index b, Index block, V by_product) const {
    const Index at = b * units_ + block * L;
    const V through = v_->drops() ? by_product * factor_of(b, block) : by_product;
    return clamp(through + load<V>(carry_h_ + at), v_->grad_clip);
  }
  T* output_gradient_of(Index b) const { return dh_ + b * units_; }

  // Makes the gradients of the sums of position s, whose rows' dh is in output_gradient_of. All meet after
  // it.
  template <class SumsOf, class OutOf>
  void run(Index s, SumsOf sums, OutOf out, Barrier& barrier) const {
    const Index rows = stream_->active(s);
    const auto of_row = [&](Index b) { return [&sums, b](Index block) { return sums(b, block); }; };
    if (v_->cell_norm != CellNorm::none) {
      for (Index b = 0; b < rows; ++b) unshow_row(s, b, of_row(b));
      barrier.wait();
    }
    for (Index b = 0; b < rows; ++b) unstep_row(s, b, of_row(b), [&](Index block) { return out(b, block); });
    if (v_->attends() && args_->dx.data) {
      barrier.wait();
      const Range own = share(rows, members_, member_);
      for (Index b = own.first; b < own.last; ++b) store_weight_gradient(s, b);
    }
    if (v_->gate_norm == GateNorm::none) return;
    barrier.wait();
    for (Index b = 0; b < rows; ++b) unnorm_row(s, b, of_row(b), [&](Index block) { return out(b, block); });
  }

  // Of r h at position s comes what reaches the reset gate and h. The gates' other gradients are there.
  template <class SumsOf, class OutOf>
  void unreset(Index s, Index b, Index block, V dproduct, SumsOf sums, OutOf out) const {
    const T* const of = sums(b, block);
    const V sum = load<V>(of) + load<V>(of + L), factor = factor_of(b, block);
    const V d =
        this->first_lanes(reset_gradient(*v_, sum, state_before(0, s, b, block) * factor, dproduct), block);
    T* const to = out(b, block);
    T* const carry = carry_h_ + b * units_ + block * L;
    const V through = this->first_lanes(dproduct * reset_gate(*v_, sum) * factor, block);
    store(to, d), store(to + L, d), store(carry, load<V>(carry) + through);
  }

  // Of a sequence that begins after the position at hand.
  void store_initial_cell(Index b) const {
    for (int state = 1; state < v_->states; ++state) {
      T* const to = this->vector_of(args_->dinitial, state, stream_->sequence(b));
      for (Index block = mine_.first; to && block < mine_.last; ++block)
        store(to + block * L, load<V>(carry_of(state, b, block)), lanes(block));
    }
  }

  // After all positions.
  void store_parameters() const {
    if (!args_->dvariation) return;
    const VariationGradient<T>& d = *args_->dvariation;
    const Index G = v_->gates;
    const auto give = [&](T* to, Index first, Index rows) {
      for (Index row = 0; to && row < rows; ++row) {
        for (Index block = mine_.first; block < mine_.last; ++block) {
          const T* const sum = sum_of(first + row, block);
          store(to + row * v_->hidden + block * L, ExactSum<V>{load<V>(sum), load<V>(sum + L)}.value(),
                lanes(block));
        }
      }
    };
    give(d.unit, kUnit, 1);
    give(d.peephole, kPeephole, v_->peepholes());
    give(d.norm_ih_weight, kNormX, G), give(d.norm_ih_bias, kNormX + kMaxGates, G);
    give(d.norm_hh_weight, kNormH, G), give(d.norm_hh_bias, kNormH + kMaxGates, G);
    give(d.norm_c_weight, kNormC, 1), give(d.norm_c_bias, kNormC + 1, 1);
  }

 private:
  // Sums over all rows, for each unit, with what their roundings lost.
  static constexpr Index kPeephole = 0, kNormX = 3, kNormH = kNormX + 2 * kMaxGates,
                         kNormC = kNormH + 2 * kMaxGates, kUnit = kNormC + 2, kSums = kUnit + 1;
  T* sum_of(Index sum, Index block) const { return sums_ + (sum * units_ + block * L) * 2; }
  void add(Index sum, Index block, V x) const {
    T* const at = sum_of(sum, block);
    ExactSum<V> s{load<V>(at), load<V>(at + L)};
    s.add(this->first_lanes(x, block));
    store(at, s.total), store(at + L, s.lost);
  }

  V factor_of(Index b, Index block) const {
    return v_->drops() ? load<V>(this->factors_ + b * units_ + block * L) : broadcast<V>(1);
  }
  RowNorms norms_of(Index row) const {
    return this->norms() ? Base::load_norms(tape_.norms + row * kNormScalars) : RowNorms{};
  }
  V state_before(int state, Index s, Index b, Index block) const {
    const Index row = stream_->previous(s, b);
    if (row >= 0 && state > 0) return load<V>(tape_.cell_of(state, row) + block * L);
    const T* const from =
        row >= 0 ? args_->y[row] : this->vector_of(args_->initial, state, stream_->sequence(b));
    return from ? load<V>(from + block * L, lanes(block)) : V{};
  }

  // A row's block of an LSTM, as forward had it, and the gradients of its new states.
  struct Shown {
    LstmStep<V> step;
    Peepholes<V> p;
    V carried, before_clip, dh, dc, kept_c;
  };
  Shown shown(Index s, Index b, Index row, Index block, const RowNorms& norms,
              const GateSums<V>& gates) const {
    Shown of;
    of.p = this->peepholes(block);
    of.carried = of.step.carry(*v_, gates, of.p, state_before(1, s, b, block));
    V c, as;
    this->settle(norms, of.carried, block, of.before_clip, c, as);
    of.step.show(*v_, gates, of.p, c, as);
    const Index at = b * units_ + block * L;
    of.dh = load<V>(dh_ + at);
    this->split(0, block, of.dh);
    of.dc = load<V>(carry_of(1, b, block));
    if (args_->dcells.data) of.dc = of.dc + load<V>(args_->dcells[row] + block * L, lanes(block));
    of.kept_c = this->split(1, block, of.dc);
    return of;
  }
  V clipped_cell_gradient(const Shown& of, V ds) const {
    return clamp_gradient(ds, of.before_clip, v_->cell_clip);
  }

  // With a norm of c: the gradient of what it gave, and its two sums over a row.
  template <class SumsOf>
  void unshow_row(Index s, Index b, SumsOf sums) const {
    const Index row = stream_->row(s, b);
    const RowNorms norms = norms_of(row);
    this->draw_kept(row);
    for (Index block = mine_.first; block < mine_.last; ++block) {
      const Shown of =
          shown(s, b, row, block, norms, this->normalised(this->raw_sums(sums, block), norms, block));
      V da_o, d;
      of.step.unshow(*v_, of.dh, da_o, d);
      const bool carries = v_->cell_norm == CellNorm::carried;
      if (carries) d = clipped_cell_gradient(of, fma(of.p.o, da_o, of.dc + d));
      const V normal = norms.c(carries ? of.carried : of.step.c);
      store(da_o_ + b * units_ + block * L, da_o);
      store(dnormed_ + b * units_ + block * L, d);
      store_norm_sums(b, block, 2, &d, &normal, v_->norm_c_weight, 1, kNormC, kNormC + 1);
    }
  }

  // From the gradients d of `count` vectors that a norm gave, and their normal form.
  void store_norm_sums(Index b, Index block, int quantity, const V* d, const V* normal, const T* weight,
                       int count, Index weight_sum, Index bias_sum) const {
    V sum{}, along{};
    for (int g = 0; g < count; ++g) {
      const V scaled = d[g] * this->parameter(weight, g, block, 1);
      sum = sum + scaled;
      along = fma(scaled, normal[g], along);
      add(weight_sum + g, block, d[g] * normal[g]);
      add(bias_sum + g, block, d[g]);
    }
    T* const out = this->partial(b, block, quantity);
    out[0] = Base::sum_of_lanes(this->first_lanes(sum, block));
    out[1] = Base::sum_of_lanes(this->first_lanes(along, block));
  }
  struct NormSums {
    T mean, along;
  };
  NormSums norm_sums(Index b, int quantity, int count) const {
    NormSums all{0, 0};
    for (Index block = 0; block < blocks_; ++block) {
      const T* const of = this->partial(b, block, quantity);
      all.mean += of[0], all.along += of[1];
    }
    const T n = T(count * v_->hidden);
    return {all.mean / n, all.along / n};
  }
  static V unnormed(const Norm& norm, const NormSums& sums, V d, V weight, V normal) {
    return norm.scale * (fma(d, weight, -normal * sums.along) - sums.mean);
  }

  template <class SumsOf, class OutOf>
  void unstep_row(Index s, Index b, SumsOf sums, OutOf out) const {
    const Index row = stream_->row(s, b);
    const RowNorms norms = norms_of(row);
    const NormSums of_c = v_->cell_norm == CellNorm::none ? NormSums{0, 0} : norm_sums(b, 2, 1);
    this->draw_kept(row);
    for (Index block = mine_.first; block < mine_.last; ++block) {
      const GateSums<V> raw = this->raw_sums(sums, block), gates = this->normalised(raw, norms, block);
      const Index at = b * units_ + block * L;
      GateSums<V> d{};
      V dh = load<V>(dh_ + at);
      V carry = this->split(0, block, dh);
      if (v_->maths == Maths::slstm) {
        unstep_exponential(gates, s, b, block, dh, d);
      } else if (this->is_lstm()) {
        unstep_lstm(shown(s, b, row, block, norms, gates), norms, of_c, at, block, d);
      } else {
        carry = carry + unstep_output(gates, state_before(0, s, b, block), s, b, block, dh, d);
      }
      store(carry_h_ + at, this->first_lanes(carry, block));
      if (v_->gate_norm == GateNorm::none) {
        store_gradients(d, block, out);
      } else {
        keep_gradients(b, block, norms, raw, d);
      }
    }
  }

  void store_weight_gradient(Index s, Index b) const {
    T sum = 0;
    for (Index block = 0; block < blocks_; ++block) sum += this->partial(b, block, 0)[0];
    args_->dx[stream_->row(s, b)][stream_->shape.input] = sum;
  }

  V unstep_output(const GateSums<V>& gates, V h, Index s, Index b, Index block, V dh, GateSums<V>& d) const {
    if (v_->attends()) {
      V dweight;
      const AttendedStep<V> step(*v_, gates);
      const V direct =
          step.gradient(*v_, h, args_->x[stream_->row(s, b)][stream_->shape.input], dh, d, dweight);
      this->partial(b, block, 0)[0] = Base::sum_of_lanes(this->first_lanes(dweight, block));
      return direct;
    }
    const V entered = h * factor_of(b, block);
    const V direct = output_gradient(*v_, this->with_unit(gates, entered, block), h, dh, d);
    if (!v_->unit) return direct;
    add(kUnit, block, d.h[0] * entered);
    return fma(d.h[0] * factor_of(b, block), this->parameter(v_->unit, 0, block, 0), direct);
  }

  T* carry_of(int state, Index b, Index block) const { return carry_[state] + b * units_ + block * L; }

  void unstep_exponential(const GateSums<V>& gates, Index s, Index b, Index block, V dh,
                          GateSums<V>& da) const {
    const V c = state_before(1, s, b, block), n = state_before(2, s, b, block);
    V d[kMaxStateVectors] = {};
    for (int state = 1; state < v_->states; ++state) d[state] = load<V>(carry_of(state, b, block));
    ExponentialStep<V>(gates, c, n, state_before(3, s, b, block)).gradient(c, n, dh, d, da);
    for (int state = 1; state < v_->states; ++state)
      store(carry_of(state, b, block), clamp(this->first_lanes(d[state], block), v_->grad_clip));
  }

  void unstep_lstm(const Shown& of, const RowNorms& norms, const NormSums& of_c, Index at, Index block,
                   GateSums<V>& d) const {
    V da_o, ds;
    if (v_->cell_norm == CellNorm::none) {
      V dshown;
      of.step.unshow(*v_, of.dh, da_o, dshown);
      ds = clipped_cell_gradient(of, fma(of.p.o, da_o, of.dc + dshown));
    } else {
      const bool carries = v_->cell_norm == CellNorm::carried;
      da_o = load<V>(da_o_ + at);
      ds = unnormed(norms.c, of_c, load<V>(dnormed_ + at), this->parameter(v_->norm_c_weight, 0, block, 1),
                    norms.c(carries ? of.carried : of.step.c));
      if (!carries) ds = clipped_cell_gradient(of, fma(of.p.o, da_o, of.dc + ds));
    }
    V da[kMaxGates]{};
    const V dc = of.step.uncarry(*v_, of.p, ds, da);
    da[v_->gates - 1] = da_o;
    for (int g = 0; g < v_->gates; ++g) d.x[g] = d.h[g] = da[g];
    store(carry_[1] + at, clamp(this->first_lanes(dc + of.kept_c, block), v_->grad_clip));
    if (!v_->peephole) return;
    add(kPeephole, block, da[0] * of.step.c_prev);
    if (v_->peepholes() > 2) add(kPeephole + 1, block, da[1] * of.step.c_prev);
    add(kPeephole + v_->peepholes() - 1, block, da_o * of.step.c);
  }

  template <class OutOf>
  void store_gradients(const GateSums<V>& d, Index block, OutOf out) const {
    for (int g = 0; g < v_->gates; ++g) {
      T* const to = out(g * blocks_ + block);
      store(to, this->first_lanes(d.x[g], block)), store(to + L, this->first_lanes(d.h[g], block));
    }
  }

  T* inner_of(Index b, Index block) const { return inner_ + (b * blocks_ + block) * 2 * v_->gates * L; }

  GateSums<V> normal_sums(const GateSums<V>& raw, const RowNorms& norms) const {
    GateSums<V> normal{};
    const bool joint = v_->gate_norm == GateNorm::joint;
    for (int g = 0; g < v_->gates; ++g) {
      normal.x[g] = norms.x(joint ? raw.both(g) : raw.x[g]);
      if (v_->gate_norm == GateNorm::separate) normal.h[g] = norms.h(raw.h[g]);
    }
    return normal;
  }

  void keep_gradients(Index b, Index block, const RowNorms& norms, const GateSums<V>& raw,
                      const GateSums<V>& d) const {
    const GateSums<V> normal = normal_sums(raw, norms);
    store_norm_sums(b, block, 0, d.x, normal.x, v_->norm_ih_weight, v_->gates, kNormX, kNormX + kMaxGates);
    if (v_->gate_norm == GateNorm::separate)
      store_norm_sums(b, block, 1, d.h, normal.h, v_->norm_hh_weight, v_->gates, kNormH, kNormH + kMaxGates);
    T* const inner = inner_of(b, block);
    for (int g = 0; g < v_->gates; ++g)
      store(inner + 2 * g * L, d.x[g]), store(inner + (2 * g + 1) * L, d.h[g]);
  }

  template <class SumsOf, class OutOf>
  void unnorm_row(Index s, Index b, SumsOf sums, OutOf out) const {
    const RowNorms norms = norms_of(stream_->row(s, b));
    const bool joint = v_->gate_norm == GateNorm::joint;
    const bool separate = v_->gate_norm == GateNorm::separate;
    const NormSums of_x = norm_sums(b, 0, v_->gates), of_h = separate ? norm_sums(b, 1, v_->gates) : of_x;
    for (Index block = mine_.first; block < mine_.last; ++block) {
      const GateSums<V> normal = normal_sums(this->raw_sums(sums, block), norms);
      const T* const inner = inner_of(b, block);
      GateSums<V> d{};
      for (int g = 0; g < v_->gates; ++g) {
        d.x[g] = unnormed(norms.x, of_x, load<V>(inner + 2 * g * L),
                          this->parameter(v_->norm_ih_weight, g, block, 1), normal.x[g]);
        d.h[g] = joint ? d.x[g] : load<V>(inner + (2 * g + 1) * L);
        if (separate)
          d.h[g] =
              unnormed(norms.h, of_h, d.h[g], this->parameter(v_->norm_hh_weight, g, block, 1), normal.h[g]);
      }
      store_gradients(d, block, out);
    }
  }

  const BackwardArgs<T>* args_ = nullptr;
  VariedTape<T> tape_{};
  T *carry_h_ = nullptr, *dh_ = nullptr;  // [batch, units], each member its own units
  T* carry_[kMaxStateVectors] = {};       // of the states after h [batch, units]
  int member_ = 0, members_ = 1;
  T* inner_ = nullptr;                      // gradients of normalised sums [batch, blocks, gates, 2, lanes]
  T *dnormed_ = nullptr, *da_o_ = nullptr;  // [batch, units]
  T* sums_ = nullptr;                       // [sums, blocks, 2, lanes]
};

}  // namespace rnnfused::RNNFUSED_ISA
