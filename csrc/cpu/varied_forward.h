// The stage of a layer with options (varied.h) in forward: from the sums of a step to its states.
#pragma once

#include "cpu/varied.h"

namespace rnnfused::RNNFUSED_ISA {

template <class T>
class VariedForward : VariedStage<T> {
  using Base = VariedStage<T>;
  using Base::L, Base::v_, Base::stream_, Base::units_, Base::mine_, Base::lanes;
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
          if (state == 0 && start_) store(start_ + b * units_ + block * L, value * this->factor_of(b, block));
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
        store(out + block * L, r * (h * this->factor_of(b, block)));
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

  RowNorms<T> norms_of_gates(Index b) const {
    RowNorms<T> norms{};
    if (v_->gate_norm != GateNorm::none) norms.x = this->combined(b, 0, v_->gates);
    if (v_->gate_norm == GateNorm::separate) norms.h = this->combined(b, 1, v_->gates);
    return norms;
  }

  // f c + i g of a row, and its moments.
  template <class SumsOf>
  void carry_row(Index b, const RowNorms<T>& norms, SumsOf sums) const {
    for (Index block = mine_.first; block < mine_.last; ++block) {
      LstmStep<V> step;
      const auto units = this->units(block);
      const V carried = step.carry(*v_, units.normalised(this->raw_sums(sums, block), norms),
                                   units.peepholes(), load<V>(state_of(1, b, block)));
      store(carried_ + b * units_ + block * L, carried);
      const V normed = units.to_norm(carried);
      this->store_moments(b, block, 2, &normed, 1);
    }
  }

  template <class SumsOf>
  void finish_row(Index s, Index b, SumsOf sums) const {
    const Index row = stream_->row(s, b);
    RowNorms<T> norms = norms_of_gates(b);
    if (v_->cell_norm != CellNorm::none) norms.c = this->combined(b, 2, 1);
    if (taped_ && v_->norms()) this->store_norms(norms, tape_.norms + row * kNormScalars);
    this->draw_kept(row);
    const T weight = v_->attends() ? args_->x[row][stream_->shape.input] : T(0);
    for (Index block = mine_.first; block < mine_.last; ++block) {
      V next[kMaxStateVectors];
      step(norms, this->units(block).normalised(this->raw_sums(sums, block), norms), b, block, weight, next);
      for (int state = 0; state < v_->states; ++state) {
        T* const at = state_of(state, b, block);
        next[state] = mixed(*v_, state, this->kept(state, block), load<V>(at), next[state]);
        store(at, next[state]);
        if (taped_ && state > 0) store(tape_.cell_of(state, row) + block * L, next[state]);
      }
      const Index at = block * L;
      store(args_->y[row] + at, next[0], lanes(block));
      if (start_) store(tape_.operand + row * units_ + at, next[0] * this->factor_of(b, block));
      if (args_->cells.data) store(args_->cells[row] + at, next[1], lanes(block));
    }
  }

  // weight: of the row, where the cell has one.
  void step(const RowNorms<T>& norms, const GateSums<V>& gates, Index b, Index block, T weight,
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
                    : next_output(*v_, this->units(block).with_unit(gates, h * this->factor_of(b, block)), h);
      return;
    }
    LstmStep<V> step;
    const Peepholes<V> p = this->units(block).peepholes();
    const V carried = carried_ ? load<V>(carried_ + b * units_ + block * L)
                               : step.carry(*v_, gates, p, load<V>(state_of(1, b, block)));
    V before_clip, shown;
    this->units(block).settle(norms, carried, before_clip, next[1], shown);
    next[0] = step.show(*v_, gates, p, next[1], shown);
  }

  const ForwardArgs<T>* args_ = nullptr;
  VariedTape<T> tape_{};
  bool taped_ = false;
  T* states_[kMaxStateVectors] = {};  // [batch, units]
  T* start_ = nullptr;                // the initial h as it enters the product [batch, units]
  T* carried_ = nullptr;              // f c + i g, where c is normalised [batch, units]
};

}  // namespace rnnfused::RNNFUSED_ISA
