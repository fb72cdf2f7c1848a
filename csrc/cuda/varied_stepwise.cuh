// The stepwise driver of layers with options: its products, with kernels that make states of all gates' sums
// (varied.cuh) between them.
#pragma once

#include "cuda/stepwise.cuh"
#include "cuda/varied.cuh"

namespace rnnfused::cuda {

// Blocks for the rows of a step, or of something like it: where nothing is summed over a row, its units are
// shared by several.
inline LaunchConfig rows_of_units(Index rows, Index units, int layers, bool sums) {
  unsigned threads = 32;
  while (threads < kBlockThreads && Index(threads) < units) threads *= 2;
  LaunchConfig config;
  const Index parts = sums ? 1 : (units + threads - 1) / threads;
  config.grid = {unsigned(rows), unsigned(parts < 64 ? parts : 64), unsigned(layers)};
  config.block = {threads, 1, 1};
  if (sums) config.shared_bytes = int(threads * kBlockSums * sizeof(double));
  return config;
}

// What both ways have in common beside the products.
template <class T>
struct VariedCall {
  using C = Compute<T>;
  const Layer& layer;
  const Variation<C>& v;
  StreamHandle stream;

  VariedCall(const Layer& of, StreamHandle on) : layer(of), v(variation_of<T>(of)), stream(on) {}

  bool sums() const { return v.norms() || v.attends(); }
  // What h feeds first, where the last gate comes after the others.
  int first_gates() const { return v.gates - v.resets(); }

  template <class Kernel, class Args>
  void over_rows(Index rows, int layers, Kernel kernel, const Args& args) const {
    if (rows > 0 && v.hidden > 0) launch(rows_of_units(rows, v.hidden, layers, sums()), stream, kernel, args);
  }

  void fill(VariedStep<T>& step, C* of_sums, Index sums_stride, const C* recurrent, C* norms) const {
    for (int d = 0; d < layer.directions; ++d) step.variation[d] = variation_of<T>(layer, d);
    step.batch = layer.shape.batch;
    step.hidden = v.hidden;
    step.directions = layer.directions;
    step.x = static_cast<const T*>(layer.x);
    step.x_stride = layer.x_stride;
    step.sums = of_sums;
    step.sums_stride = sums_stride;
    step.recurrent = v.multiplies() ? recurrent : nullptr;
    step.norms = norms;
    step.rows = layer.shape.rows();
  }

  // Every direction's W_hh, from a gate on.
  Matrix recurrent_weights(int first) const {
    const Index H = v.hidden;
    return matrix(static_cast<const T*>(layer.recurrent_weights) + first * H * H, H, v.gates * H * H);
  }
};

template <class T>
class VariedStepwiseForward : StepwiseForward<Staged, T> {
  using Base = StepwiseForward<Staged, T>;
  using Base::gates_, Base::gates_stride_, Base::recurrent_, Base::scratch_bytes_;
  using Base::layer_, Base::layer_forward_, Base::shape_, Base::tape_, Base::typed;
  using typename Base::C;

 public:
  VariedStepwiseForward(const ForwardLayer& layer, Matmul* matmul, StreamHandle stream)
      : Base(layer, matmul, stream), call_(layer, stream) {
    const Variation<C>& v = call_.v;
    const Index states = layer.directions * shape_.batch * v.hidden;
    Arena arena(layer.scratch);
    arena.take<char>(scratch_bytes_);
    if (v.drops()) operand_ = arena.take<T>(states);
    if (v.resets()) reset_ = arena.take<T>(states);
    if (v.cell_norm != CellNorm::none) carried_ = arena.take<C>(states);
    scratch_bytes_ = arena.used();
  }

  using Base::work;

  void run() const {
    const Variation<C>& v = call_.v;
    const Index D = layer_.directions, B = shape_.batch, H = v.hidden;
    const int first = call_.first_gates();
    const auto product = [&](int gate, int gates, const T* operand) {
      return RepeatedProduct(*this->matmul_,
                             {D, 0, gates * H, H, matrix(recurrent_ + gate * H, v.gates * H, B * v.gates * H),
                              matrix(operand, H, B * H), transposed(call_.recurrent_weights(gate))});
    };
    RepeatedProduct recur = product(0, first, operand_ ? operand_ : typed(layer_forward_.h));
    RepeatedProduct recur_last = product(first, v.gates - first, reset_);
    VariedForwardStep<T> step = step_arguments();
    if (operand_) call_.over_rows(B, layer_.directions, &varied_start<T>, step);
    if (this->uneven() && reset_) clear(reset_, D * B * H, this->stream_handle_);
    this->for_steps([&](Index s, const Range(&chunk)[kMaxDirections]) {
      const Index rows = this->most_active(s);
      this->fill_rows(s, chunk, step.at);
      if (v.multiplies()) recur(rows);
      if (reset_) {
        call_.over_rows(rows, layer_.directions, &varied_reset<T>, step);
        recur_last(rows);
      }
      call_.over_rows(rows, layer_.directions, &varied_forward<T>, step);
    });
  }

 private:
  VariedForwardStep<T> step_arguments() const {
    VariedForwardStep<T> args{};
    call_.fill(args, gates_, gates_stride_, recurrent_, tape_.norms);
    args.mask = this->mask();
    for (int d = 0; d < layer_.directions; ++d) args.biases[d] = this->biases(d);
    args.tapes_sums = tape_.gates != nullptr;
    args.h = typed(layer_forward_.h);
    args.h_wide = this->h_wide_;
    args.c = static_cast<C*>(layer_forward_.c);
    args.operand = operand_;
    args.reset = reset_;
    args.y = typed(layer_forward_.y);
    args.cells = typed(layer_forward_.cells);
    args.cell = tape_.cell;
    args.carried = carried_;
    return args;
  }

  VariedCall<T> call_;
  T *operand_ = nullptr, *reset_ = nullptr;  // [D, B, H]
  C* carried_ = nullptr;                     // [D, B, H]
};

// Where the sums of each parameter begin.
template <class C>
SumRows sum_rows(const Variation<C>& v) {
  SumRows rows{};
  const auto take = [&](bool wanted, int n) {
    const int first = rows.count;
    rows.count += wanted ? n : 0;
    return first;
  };
  rows.peephole = take(v.peephole, v.peepholes());
  rows.norm_x = take(v.gate_norm != GateNorm::none, 2 * v.gates);
  rows.norm_h = take(v.gate_norm == GateNorm::separate, 2 * v.gates);
  rows.norm_c = take(v.cell_norm != CellNorm::none, 2);
  rows.unit = take(v.unit, 1);
  return rows;
}

template <class T>
class VariedStepwiseBackward : StepwiseBackward<Staged, T> {
  using Base = StepwiseBackward<Staged, T>;
  using Base::gates_, Base::gates_stride_, Base::recurrent_, Base::scratch_bytes_, Base::now_;
  using Base::layer_, Base::layer_backward_, Base::shape_, Base::tape_, Base::typed;
  using typename Base::C;

 public:
  VariedStepwiseBackward(const BackwardLayer& layer, Matmul* matmul, StreamHandle stream)
      : Base(layer, matmul, stream), call_(layer, stream), places_(sum_rows(call_.v)) {
    const Variation<C>& v = call_.v;
    const Index states = layer.directions * shape_.batch * v.hidden;
    Arena arena(layer.scratch);
    arena.take<char>(scratch_bytes_);
    if (v.gate_norm != GateNorm::none) inner_ = arena.take<C>(states * 2 * v.gates);
    if (v.cell_norm != CellNorm::none) dshown_ = arena.take<C>(states * 2);
    if (v.resets()) {
      dreset_ = arena.take<C>(states);
      reset_ = arena.take<T>(layer.directions * shape_.rows() * v.hidden);
    }
    totals_ = arena.take<C>(total_scalars());
    scratch_bytes_ = arena.used();
  }

  using Base::work;

  void run() const {
    this->start();
    for (int d = 0; call_.v.drops() && d < layer_.directions; ++d) drop(d);
    if (places_.count > 0) clear(totals_, total_scalars(), this->stream_handle_);
    recurrence();
    for (int d = 0; d < layer_.directions; ++d) weight_gradients(d);
    this->finish();
    totals();
  }

 private:
  Index total_scalars() const {
    return layer_.directions * shape_.batch * places_.count * 2 * call_.v.hidden;
  }

  // What h was multiplied with on its way into the product, in what products over all rows read.
  void drop(int d) const {
    if (!this->reads_h_before(d)) return;
    const auto in = this->positions(d);
    Dropped<T> args{};
    args.variation = variation_of<T>(layer_, d);
    args.hidden = call_.v.hidden;
    args.h = this->h_before(d);
    for (Index s = 0; s < shape_.steps; s += kGathered) {
      int count = 0;
      Index most = 0;
      for (; count < kGathered && s + count < shape_.steps; ++count) {
        args.row[count] = in.row(s + count, 0), args.active[count] = in.active(s + count);
        most = args.active[count] > most ? args.active[count] : most;
      }
      call_.over_rows(most, count, &drop_previous<T>, args);
    }
  }

  void recurrence() const {
    const Variation<C>& v = call_.v;
    const Index D = layer_.directions, B = shape_.batch, H = v.hidden;
    const int first = call_.first_gates();
    const auto product = [&](C* out, int gate, int gates) {
      return RepeatedProduct(*this->matmul_, {D, 0, H, gates * H, matrix(out, H, B * H),
                                              matrix(now_ + gate * H, v.gates * H, B * v.gates * H),
                                              call_.recurrent_weights(gate)});
    };
    RepeatedProduct recur = product(recurrent_, 0, first);
    RepeatedProduct recur_last = product(dreset_, first, v.gates - first);
    VariedBackwardStep<T> step = step_arguments();
    this->for_steps([&](Index s, const Range(&chunk)[kMaxDirections]) {
      const Index after = this->most_active(s + 1), active = this->most_active(s);
      if (v.multiplies()) recur(after);
      this->fill_rows(s, chunk, step.at);
      for (int d = 0; d < layer_.directions; ++d)
        step.step_after[d] = s + 1 < shape_.steps ? this->positions(d).step(s + 1) : shape_.steps;
      call_.over_rows(active > after ? active : after, layer_.directions, &varied_backward<T>, step);
      if (!reset_) return;
      recur_last(active);
      call_.over_rows(active, layer_.directions, &varied_unreset<T>, step);
    });
  }

  VariedBackwardStep<T> step_arguments() const {
    VariedBackwardStep<T> args{};
    call_.fill(args, gates_, gates_stride_, recurrent_, tape_.norms);
    args.mask = this->mask();
    for (int d = 0; d < layer_.directions; ++d) args.biases[d] = this->biases(d);
    args.places = places_;
    args.y = typed(layer_backward_.y);
    args.h0 = typed(layer_backward_.h0);
    args.c0 = static_cast<const C*>(layer_backward_.c0);
    args.cell = tape_.cell;
    args.dy = typed(layer_backward_.dy);
    args.dcells = typed(layer_backward_.dcells);
    args.dh = static_cast<C*>(layer_backward_.dh);
    args.dc = static_cast<C*>(layer_backward_.dc);
    args.gradients = this->gradients_;
    args.gradients_stride = tape_.gates_stride;
    args.now = now_;
    args.inner = inner_;
    args.dshown = dshown_;
    args.dreset = dreset_;
    args.reset = reset_;
    args.dx = typed(layer_backward_.dx);
    args.totals = totals_;
    return args;
  }

  void weight_gradients(int d) const {
    const Variation<C>& v = call_.v;
    const Index H = v.hidden, rows = shape_.rows();
    const int first = call_.first_gates();
    this->input_weight_gradients(d);
    if (!layer_backward_.drecurrent[d]) return;
    const auto outer = [&](int gate, int gates, const T* right) {
      if (gates == 0) return;
      (*this->matmul_)({1, gates * H, H, rows, matrix(typed(layer_backward_.drecurrent[d]) + gate * H * H, H),
                        transposed(matrix(this->gradients_of(d) + (v.gates + gate) * H, 2 * v.gates * H)),
                        matrix(right, H)});
    };
    outer(0, first, this->h_before(d));
    outer(first, v.gates - first, reset_ + d * rows * H);
  }

  void totals() const {
    if (places_.count == 0) return;
    VariedTotals<C> args{};
    for (int d = 0; d < layer_.directions; ++d) {
      if (layer_backward_.dvariation[d])
        args.out[d] = *static_cast<const VariationParameters<C>*>(layer_backward_.dvariation[d]);
    }
    args.places = places_;
    args.gates = call_.v.gates;
    args.peepholes = call_.v.peepholes();
    args.batch = shape_.batch;
    args.hidden = call_.v.hidden;
    args.totals = totals_;
    call_.over_rows(places_.count, layer_.directions, &store_totals<C>, args);
  }

  VariedCall<T> call_;
  SumRows places_;
  C *inner_ = nullptr, *dshown_ = nullptr, *dreset_ = nullptr;
  T* reset_ = nullptr;
  C* totals_ = nullptr;
};

}  // namespace rnnfused::cuda
