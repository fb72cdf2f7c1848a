// What a tape without gates leaves to backward: the gates of a chunk of steps, from x, y and c. Since every
// h is known, there is no recurrence: two large products, in the order of terms in which forward had them.
#pragma once

#include "cpu/gates.h"
#include "cpu/gradients.h"

namespace rnnfused::RNNFUSED_ISA {

template <class Cell, class S>
class GateRebuild {
  using T = Compute<S>;
  using O = Operand<S>;
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  static constexpr Index A = Cell::accumulators, G = Cell::gates;

 public:
  GateRebuild(const BackwardArgs<S>& args, const GateGradients<Cell, S>& out, const History<Cell, S>& history,
              int thread, int threads, Arena& arena)
      : args_(args),
        out_(out),
        history_(history),
        heads_(args.variation, args.shape.output),
        blocks_(share(blocks_of<T>(args.shape.hidden), threads, thread)) {
    if (!Tape<Cell, S>::rebuilds_gates_if(args.recompute)) return;
    const SequenceShape& shape = args.shape;
    for (int t = 0; t < threads; ++t) {
      O* input_panel = arena.take<O>(kNarrowGroup<Cell> * G * L * panel_terms<S>(shape.input));
      O* recurrent_panel = arena.take<O>(kNarrowGroup<Cell> * G * L * panel_terms<S>(shape.output));
      T* accumulators = arena.take<T>(kRows * kNarrowGroup<Cell> * A * L);
      T* partial = arena.take<T>(kRows * kMaxWidth * L);
      LeftRows<S> left;
      left.take(arena, kRows, shape.input > shape.output ? shape.input : shape.output);
      if (t != thread) continue;
      input_panel_ = input_panel, recurrent_panel_ = recurrent_panel, left_ = left;
      accumulators_ = accumulators, partial_ = partial;
    }
  }

  // Puts what the cell tapes into the places of the rows' gate gradients. All threads meet after it.
  void run(Range rows) {
    const SequenceShape& shape = args_.shape;
    const auto of_group = [&](Index block, Index n) {
      pack_gates(args_.weights.input, shape.hidden, shape.input, shape.input, G,
                 Cell::gate_of + Cell::x_first, block, n, input_panel_);
      const Range terms = recurrent_terms(block);
      pack_gates(args_.weights.recurrent + terms.first, shape.hidden, terms.size(), shape.output, G,
                 Cell::gate_of + Cell::h_first, block, n, recurrent_panel_);
      for (Index row = rows.first; row < rows.last; row += kRows)
        rebuild({row, rows.last - row < kRows ? rows.last : row + kRows}, block, n);
    };
    for (Index block = blocks_.first; block < blocks_.last; block += kNarrowGroup<Cell>) {
      const Index rest = blocks_.last - block, n = rest < kNarrowGroup<Cell> ? rest : kNarrowGroup<Cell>;
      heads_.for_alike_sums(block, n, of_group);
    }
  }

 private:
  static constexpr Index kRows = 96;  // summed at once: their accumulators stay in the first-level cache

  // As forward took them.
  RNNFUSED_HD Range recurrent_terms(Index block) const {
    return heads_.several() ? heads_.terms(block) : Range{0, args_.shape.output};
  }

  void rebuild(Range rows, Index block, Index n) {
    alignas(64) T bias[kMaxWidth * L];
    for (Index j = 0; j < n; ++j)
      sum_biases<Cell>(args_.weights, args_.shape.hidden, block + j, bias + j * A * L);
    const auto kept = [&](Index i, Index j) { return accumulators_ + (i * n + j) * A * L; };
    multiply(
        rows.size(), args_.shape.input, int(n * G), input_panel_,
        [&](Index i) -> const S* { return args_.x[rows.first + i]; },
        [&](Index, T* acc) { start_projection<Cell>(bias, n, acc); },
        [&](Index i, const T* acc) {
          keep_projection<Cell>(bias, n, acc, [&](Index j) { return kept(i, j); });
        });
    const Range terms = recurrent_terms(block);
    multiply(
        rows.size(), terms.size(), int(n * G), recurrent_panel_,
        [&](Index i) { return history_.output(rows.first + i) + terms.first; },
        [&](Index i, T* acc) {
          for (Index j = 0; j < n; ++j) copy_vectors(kept(i, j) + Cell::h_first * L, acc + j * G * L, G);
        },
        [&](Index i, const T* acc) {
          for (Index j = 0; j < n; ++j) activate(rows.first + i, block + j, kept(i, j), acc + j * G * L);
        });
  }

  template <class RowOf, class Init, class Sink>
  RNNFUSED_HD void multiply(Index rows, Index size, int width, const O* panel, RowOf a, Init init,
                            Sink sink) {
    left_.convert({0, rows}, size, a);
    product<S>(rows, Runs{1, size, 0}, width, panel, partial_, left_.of(size, a), init, sink);
  }

  void activate(Index row, Index block, const T* kept, const T* acc) {
    O* gates = out_.gates_of(row) + block * A * L;
    if constexpr (kStaged<Cell>) {
      copy_vectors(kept, gates, 1), copy_vectors(acc, gates + Cell::h_first * L, 1);
    } else {
      const Index at = block * L, lanes = lanes_in<T>(block, args_.shape.hidden);
      V accumulators[A], prev[Cell::states]{}, next[Cell::states], taped[A];
      load_accumulators<Cell>(kept, acc, accumulators);
      if (!projects<Cell>(args_.shape)) prev[0] = load<V>(history_.output(row) + at, lanes);
      if constexpr (Cell::states > 1) prev[1] = load<V>(history_.cell(row) + at, lanes);
      Cell::forward(accumulators, prev, next, taped);
      for (int a = 0; a < Cell::taped; ++a) store(gates + a * L, as_taped(taped[a]));
    }
  }

  // What backward would read if it had been stored.
  static RNNFUSED_HD V as_taped(V v) {
    if constexpr (kWidens<S>) {
      return rounded(v, S{});
    } else {
      return v;
    }
  }

  const BackwardArgs<S>& args_;
  const GateGradients<Cell, S>& out_;
  const History<Cell, S>& history_;
  Heads<Cell, T> heads_;
  Range blocks_;
  O *input_panel_ = nullptr, *recurrent_panel_ = nullptr;
  LeftRows<S> left_{};  // of x or h
  T *accumulators_ = nullptr, *partial_ = nullptr;
};

}  // namespace rnnfused::RNNFUSED_ISA
