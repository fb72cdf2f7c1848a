// The stage of a layer with options (varied.h) in backward: from the gradients of a step's states to those of
// its sums, of the states before it, and of what the options bring.
#pragma once

#include "cpu/varied.h"

namespace rnnfused::RNNFUSED_ISA {

template <class T>
class VariedBackward : VariedStage<T> {
  using Base = VariedStage<T>;
  using Base::L, Base::v_, Base::stream_, Base::units_, Base::blocks_, Base::mine_, Base::lanes;
  using typename Base::Units;
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
    return clamp(by_product * this->factor_of(b, block) + load<V>(carry_h_ + at), v_->grad_clip);
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
    const V sum = load<V>(of) + load<V>(of + L), factor = this->factor_of(b, block);
    const V d =
        this->own_lanes(reset_gradient(*v_, sum, state_before(0, s, b, block) * factor, dproduct), block);
    T* const to = out(b, block);
    T* const carry = carry_h_ + b * units_ + block * L;
    const V through = this->own_lanes(dproduct * reset_gate(*v_, sum) * factor, block);
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
    const VariationParameters<T>& d = *args_->dvariation;
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
    s.add(this->own_lanes(x, block));
    store(at, s.total), store(at + L, s.lost);
  }

  RowNorms<T> norms_of(Index row) const {
    return v_->norms() ? Base::load_norms(tape_.norms + row * kNormScalars) : RowNorms<T>{};
  }
  V state_before(int state, Index s, Index b, Index block) const {
    const Index row = stream_->previous(s, b);
    if (row >= 0 && state > 0) return load<V>(tape_.cell_of(state, row) + block * L);
    const T* const from =
        row >= 0 ? args_->y[row] : this->vector_of(args_->initial, state, stream_->sequence(b));
    return from ? load<V>(from + block * L, lanes(block)) : V{};
  }

  // A row's block of an LSTM, as forward had it, and the gradients of its new states.
  struct Shown : Units::Shown {
    V dh, dc, kept_c;
  };
  Shown shown(Index s, Index b, Index row, Index block, const RowNorms<T>& norms,
              const GateSums<V>& gates) const {
    Shown of{this->units(block).shown(norms, gates, state_before(1, s, b, block)), {}, {}, {}};
    of.dh = load<V>(dh_ + b * units_ + block * L);
    split(*v_, 0, this->kept(0, block), of.dh);
    of.dc = load<V>(carry_of(1, b, block));
    if (args_->dcells.data) of.dc = of.dc + load<V>(args_->dcells[row] + block * L, lanes(block));
    of.kept_c = split(*v_, 1, this->kept(1, block), of.dc);
    return of;
  }

  // With a norm of c: the gradient of what it gave, and its two sums over a row.
  template <class SumsOf>
  void unshow_row(Index s, Index b, SumsOf sums) const {
    const Index row = stream_->row(s, b);
    const RowNorms<T> norms = norms_of(row);
    this->draw_kept(row);
    for (Index block = mine_.first; block < mine_.last; ++block) {
      const Units units = this->units(block);
      const Shown of = shown(s, b, row, block, norms, units.normalised(this->raw_sums(sums, block), norms));
      V da_o;
      const V d = units.unshow(of, of.dh, of.dc, da_o), normal = units.normal_c(of, norms);
      store(da_o_ + b * units_ + block * L, da_o);
      store(dnormed_ + b * units_ + block * L, d);
      const V weight = units.norm_c_weight();
      store_norm_sums(b, block, 2, &d, &normal, &weight, 1, kNormC, kNormC + 1);
    }
  }

  // From the gradients d of `count` vectors that a norm gave, and their normal form.
  void store_norm_sums(Index b, Index block, int quantity, const V* d, const V* normal, const V* weight,
                       int count, Index weight_sum, Index bias_sum) const {
    V sum{}, along{};
    for (int g = 0; g < count; ++g) {
      const V scaled = d[g] * weight[g];
      sum = sum + scaled;
      along = fma(scaled, normal[g], along);
      add(weight_sum + g, block, d[g] * normal[g]);
      add(bias_sum + g, block, d[g]);
    }
    T* const out = this->partial(b, block, quantity);
    out[0] = sum_of_lanes(this->own_lanes(sum, block));
    out[1] = sum_of_lanes(this->own_lanes(along, block));
  }
  NormSums<T> norm_sums(Index b, int quantity, int count) const {
    NormSums<T> all{0, 0};
    for (Index block = 0; block < blocks_; ++block) {
      const T* const of = this->partial(b, block, quantity);
      all.mean += of[0], all.along += of[1];
    }
    const T n = T(count * v_->hidden);
    return {all.mean / n, all.along / n};
  }

  template <class SumsOf, class OutOf>
  void unstep_row(Index s, Index b, SumsOf sums, OutOf out) const {
    const Index row = stream_->row(s, b);
    const RowNorms<T> norms = norms_of(row);
    const NormSums<T> of_c = v_->cell_norm == CellNorm::none ? NormSums<T>{0, 0} : norm_sums(b, 2, 1);
    this->draw_kept(row);
    for (Index block = mine_.first; block < mine_.last; ++block) {
      const GateSums<V> raw = this->raw_sums(sums, block), gates = this->units(block).normalised(raw, norms);
      const Index at = b * units_ + block * L;
      GateSums<V> d{};
      V dh = load<V>(dh_ + at);
      V carry = split(*v_, 0, this->kept(0, block), dh);
      if (v_->maths == Maths::slstm) {
        unstep_exponential(gates, s, b, block, dh, d);
      } else if (this->is_lstm()) {
        unstep_lstm(shown(s, b, row, block, norms, gates), norms, of_c, at, block, d);
      } else {
        carry = carry + unstep_output(gates, state_before(0, s, b, block), s, b, block, dh, d);
      }
      store(carry_h_ + at, this->own_lanes(carry, block));
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
      this->partial(b, block, 0)[0] = sum_of_lanes(this->own_lanes(dweight, block));
      return direct;
    }
    const V factor = this->factor_of(b, block), entered = h * factor;
    const Units units = this->units(block);
    const V direct = output_gradient(*v_, units.with_unit(gates, entered), h, dh, d);
    if (!v_->unit) return direct;
    add(kUnit, block, d.h[0] * entered);
    return fma(d.h[0] * factor, units.unit(), direct);
  }

  T* carry_of(int state, Index b, Index block) const { return carry_[state] + b * units_ + block * L; }

  void unstep_exponential(const GateSums<V>& gates, Index s, Index b, Index block, V dh,
                          GateSums<V>& da) const {
    const V c = state_before(1, s, b, block), n = state_before(2, s, b, block);
    V d[kMaxStateVectors] = {};
    for (int state = 1; state < v_->states; ++state) d[state] = load<V>(carry_of(state, b, block));
    ExponentialStep<V>(gates, c, n, state_before(3, s, b, block)).gradient(c, n, dh, d, da);
    for (int state = 1; state < v_->states; ++state)
      store(carry_of(state, b, block), clamp(this->own_lanes(d[state], block), v_->grad_clip));
  }

  void unstep_lstm(const Shown& of, const RowNorms<T>& norms, const NormSums<T>& of_c, Index at, Index block,
                   GateSums<V>& d) const {
    const Units units = this->units(block);
    V da_o, ds;
    if (v_->cell_norm == CellNorm::none) {
      ds = units.unshow(of, of.dh, of.dc, da_o);
    } else {
      da_o = load<V>(da_o_ + at);
      ds = units.unnormed_c(of, norms, of_c, of.dc, da_o, load<V>(dnormed_ + at));
    }
    const V dc = units.uncarry(of, ds, da_o, d);
    store(carry_[1] + at, clamp(this->own_lanes(dc + of.kept_c, block), v_->grad_clip));
    if (!v_->peephole) return;
    add(kPeephole, block, d.h[0] * of.step.c_prev);
    if (v_->peepholes() > 2) add(kPeephole + 1, block, d.h[1] * of.step.c_prev);
    add(kPeephole + v_->peepholes() - 1, block, da_o * of.step.c);
  }

  template <class OutOf>
  void store_gradients(const GateSums<V>& d, Index block, OutOf out) const {
    for (int g = 0; g < v_->gates; ++g) {
      T* const to = out(g * blocks_ + block);
      store(to, this->own_lanes(d.x[g], block)), store(to + L, this->own_lanes(d.h[g], block));
    }
  }

  T* inner_of(Index b, Index block) const { return inner_ + (b * blocks_ + block) * 2 * v_->gates * L; }

  void keep_gradients(Index b, Index block, const RowNorms<T>& norms, const GateSums<V>& raw,
                      const GateSums<V>& d) const {
    const Units units = this->units(block);
    const GateSums<V> normal = units.normal(raw, norms);
    V weight[kMaxGates];
    for (int g = 0; g < v_->gates; ++g) weight[g] = units.norm_ih_weight(g);
    store_norm_sums(b, block, 0, d.x, normal.x, weight, v_->gates, kNormX, kNormX + kMaxGates);
    if (v_->gate_norm == GateNorm::separate) {
      for (int g = 0; g < v_->gates; ++g) weight[g] = units.norm_hh_weight(g);
      store_norm_sums(b, block, 1, d.h, normal.h, weight, v_->gates, kNormH, kNormH + kMaxGates);
    }
    T* const inner = inner_of(b, block);
    for (int g = 0; g < v_->gates; ++g)
      store(inner + 2 * g * L, d.x[g]), store(inner + (2 * g + 1) * L, d.h[g]);
  }

  template <class SumsOf, class OutOf>
  void unnorm_row(Index s, Index b, SumsOf sums, OutOf out) const {
    const RowNorms<T> norms = norms_of(stream_->row(s, b));
    const bool joint = v_->gate_norm == GateNorm::joint;
    const bool separate = v_->gate_norm == GateNorm::separate;
    const NormSums<T> of_x = norm_sums(b, 0, v_->gates), of_h = separate ? norm_sums(b, 1, v_->gates) : of_x;
    for (Index block = mine_.first; block < mine_.last; ++block) {
      const Units units = this->units(block);
      const GateSums<V> normal = units.normal(this->raw_sums(sums, block), norms);
      const T* const inner = inner_of(b, block);
      GateSums<V> d{};
      for (int g = 0; g < v_->gates; ++g) {
        d.x[g] = unnormed(norms.x, of_x, load<V>(inner + 2 * g * L), units.norm_ih_weight(g), normal.x[g]);
        d.h[g] = joint ? d.x[g] : load<V>(inner + (2 * g + 1) * L);
        if (separate) d.h[g] = unnormed(norms.h, of_h, d.h[g], units.norm_hh_weight(g), normal.h[g]);
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
