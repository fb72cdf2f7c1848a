#include "torch/tangents.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "core/stream.h"
#include "torch/backends.h"
#include "torch/tangents_gpu.h"

namespace rnnfused {
namespace {

using RNNFUSED_ISA::Stream;

// On either device: what is computed here is computed in float32 or float64.
at::Tensor dense_if_defined(const at::Tensor& t) { return t.defined() ? dense_computed(t, "tangent") : t; }

LayerTensors dense_all(const LayerTensors& t) {
  LayerTensors all{dense_if_defined(t.x), dense_if_defined(t.h0), dense_if_defined(t.c0), {}};
  for (const at::Tensor& w : t.weights) all.weights.push_back(dense_if_defined(w));
  return all;
}

OutputTensors dense_all(const OutputTensors& t) {
  return {dense_if_defined(t.y), dense_if_defined(t.hn), dense_if_defined(t.cn), dense_if_defined(t.cells)};
}

bool any(const OutputTensors& t) {
  return t.y.defined() || t.hn.defined() || t.cn.defined() || t.cells.defined();
}

bool any(const LayerTensors& t) {
  return t.x.defined() || t.h0.defined() || t.c0.defined() ||
         std::any_of(t.weights.begin(), t.weights.end(), [](const at::Tensor& w) { return w.defined(); });
}

// A direction's slice of states.
at::Tensor slice(const at::Tensor& states, int direction) {
  return states.defined() ? states.select(0, direction) : states;
}

// sum += a b, where both are there.
void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() && b.defined()) sum.addmm_(a, b);
}

at::Tensor transposed(const at::Tensor& t) { return t.defined() ? t.t() : t; }

// Of a [rows, N, C] tensor whose rows hold a value and, where N is 2, its tangent.
at::Tensor values(const at::Tensor& pairs) { return pairs.select(1, 0); }
at::Tensor tangents(const at::Tensor& pairs) { return pairs.select(1, 1); }

// The same as a matrix of N rows for each.
at::Tensor stacked(const at::Tensor& pairs) { return pairs.view({-1, pairs.size(2)}); }

template <class T, class Data>
DualRows<T> rows_from(const at::Tensor& pairs, Index row, Data data) {
  if (!pairs.defined()) return {};
  T* at = data(pairs) + row * pairs.stride(0);
  return {at, pairs.size(1) > 1 ? at + pairs.stride(1) : nullptr, pairs.stride(0)};
}

template <class T>
DualRows<T> written(const at::Tensor& pairs, Index row) {
  return rows_from<T>(pairs, row, [](const at::Tensor& t) { return t.mutable_data_ptr<T>(); });
}

template <class T>
DualRows<const T> read(const at::Tensor& pairs, Index row) {
  return rows_from<const T>(pairs, row, [](const at::Tensor& t) { return t.const_data_ptr<T>(); });
}

// Of two matrices laid out alike, either of which may be undefined.
template <class T>
DualRows<const T> read(const at::Tensor& value, const at::Tensor& tangent, Index row) {
  if (!value.defined() && !tangent.defined()) return {};
  const Index stride = value.defined() ? value.stride(0) : tangent.stride(0);
  const auto at = [&](const at::Tensor& t) {
    return t.defined() ? t.const_data_ptr<T>() + row * stride : nullptr;
  };
  return {at(value), at(tangent), stride};
}

// Steps of a layer's tangents. Those that wait for nothing but each other are run at once: threads are woken
// and put to rest once.
template <class Step>
class Steps {
 public:
  Steps(const Inputs& in, bool at_once, int threads) : in_(in), at_once_(at_once), threads_(threads) {}

  void add(const Step& step) {
    if (in_.on_gpu) return on_gpu(step);
    waiting_.push_back(step);
    if (!at_once_) run();
  }
  void run() {
    on_cpu(waiting_.data());
    waiting_.clear();
  }

 private:
  template <class T>
  void on_gpu(const TangentForward<T>& step) const {
    tangent_forward_on_gpu(in_, step);
  }
  template <class T>
  void on_gpu(const TangentBackward<T>& step) const {
    tangent_backward_on_gpu(in_, step);
  }
  template <class T>
  void on_cpu(const TangentForward<T>* steps) const {
    cpu::tangent_forward(in_.cell, steps, Index(waiting_.size()), threads_);
  }
  template <class T>
  void on_cpu(const TangentBackward<T>* steps) const {
    cpu::tangent_backward(in_.cell, steps, Index(waiting_.size()), threads_);
  }

  const Inputs& in_;
  bool at_once_;
  int threads_;
  std::vector<Step> waiting_;
};

// One direction: what it takes from its inputs, and its rows' memory.
template <class T>
class DirectionPass {
 public:
  // Values alone without `along`; `tape` is the layer's, or undefined.
  DirectionPass(const Inputs& in, int direction, const at::Tensor& y, const at::Tensor& tape,
                const LayerTensors* along)
      : in_(in),
        direction_(direction),
        stream_(in.shape),
        copies_(along ? 2 : 1),
        threads_(threads_allowed()) {
    const SequenceShape& shape = in.shape;
    stream_.shape.reverse = direction == 1;
    x_ = in.x.view({shape.rows(), shape.input});
    h_ = of_direction(y);
    h0_ = slice(in.h0, direction), c0_ = slice(in.c0, direction);
    w_ih_ = by_accumulator(in.weight(direction, 0), in.info.x_first);
    w_hh_ = by_accumulator(in.weight(direction, 1), in.info.h_first);
    w_hr_ = in.weight(direction, 4);
    if (tape.defined()) {
      const Index units = whole_vectors(tape.scalar_type(), shape.hidden);
      const T* const gates = tape.const_data_ptr<T>() + direction * tape.size(1);
      const T* const cell = gates + shape.rows() * units * in.info.accumulators;
      taped_ = {gates, in.info.states > 1 ? cell : nullptr, units};
    }
    if (!along) return;
    const auto weight = [&](int slot) {
      return along->weights.empty() ? at::Tensor() : along->weights[size_t(direction * kSlots + slot)];
    };
    if (along->x.defined()) dx_ = along->x.view({shape.rows(), shape.input});
    dh0_ = slice(along->h0, direction), dc0_ = slice(along->c0, direction);
    dw_ih_ = by_accumulator(weight(0), in.info.x_first);
    dw_hh_in_torchs_order_ = weight(1);
    dw_hh_ = by_accumulator(weight(1), in.info.h_first);
    db_ih_ = weight(2), db_hh_ = weight(3), dw_hr_ = weight(4);
  }

  // Fills what backward() reads and, where tangents are carried, those of y and of the final states: y of all
  // directions, the others [B, units] of this one.
  void forward(const OutputTensors& out) {
    const SequenceShape& shape = in_.shape;
    dh_ = out.y.defined() ? of_direction(out.y) : at::Tensor();
    gates_ = padded(in_.info.accumulators * shape.hidden);
    if (in_.info.states > 1) cells_ = in_.empty({shape.rows(), copies_, shape.hidden});
    if (shape.projected()) unprojected_ = in_.empty({shape.rows(), copies_, shape.hidden});
    if (copies_ == 1 && in_.info.taped == 0) return;  // y is all that backward needs
    accumulate();
    const at::Tensor w_hh = w_hh_.t(), w_hr = transposed(w_hr_), dw_hr = transposed(dw_hr_);
    const at::Tensor recurrent = copies_ > 1 ? fed(tangents(gates_), in_.info.h_first) : at::Tensor();
    const at::Tensor packed = copies_ > 1 ? pack_forward() : at::Tensor();
    Steps<TangentForward<T>> steps(in_, packed.defined() || copies_ == 1, threads_);
    for (Index s = 0; s < shape.steps; ++s) {
      const Index active = stream_.active(s), row = stream_.row(s, 0);
      const Index count = std::min(active, stream_.active(s - 1)), from = row_before(s);
      if (active == 0) continue;
      if (copies_ > 1 && !packed.defined()) {
        if (count > 0) recurrent.narrow(0, row, count).addmm_(dh_.narrow(0, from, count), w_hh);
        if (active > count && dh0_.defined()) {
          recurrent.narrow(0, row + count, active - count)
              .addmm_(dh0_.narrow(0, count, active - count), w_hh);
        }
      }
      TangentForward<T> step{active, shape.hidden, copies_ > 1, written<T>(gates_, row), previous(s), {}};
      step.next[0] = shape.projected() ? written<T>(unprojected_, row) : h_and_tangents(row);
      step.next[1] = written<T>(cells_, row);
      if (taped_.gates) {
        step.taped = {taped_.gates + row * taped_.units * in_.info.accumulators,
                      taped_.cell ? taped_.cell + row * taped_.units : nullptr, taped_.units};
      }
      if (packed.defined()) step.recurrent = packed.const_data_ptr<T>();
      steps.add(step);
      if (!shape.projected() || copies_ == 1) continue;
      at::Tensor dh = dh_.narrow(0, row, active);
      at::mm_out(dh, tangents(unprojected_).narrow(0, row, active), w_hr);
      if (dw_hr.defined()) dh.addmm_(values(unprojected_).narrow(0, row, active), dw_hr);
    }
    steps.run();
    if (out.hn.defined()) copy_final(dh_, out.hn);
    if (out.cn.defined()) copy_final(tangents(cells_), out.cn);
    if (out.cells.defined()) of_direction(out.cells, shape.hidden).copy_(tangents(cells_));
  }

  // Turns the tape into gradients of the gates; those of the initial states are left in dstates.
  void backward(const OutputTensors& outer, const OutputTensors* outer_tangents) {
    const SequenceShape& shape = in_.shape;
    const OutputTensors none, &along = outer_tangents ? *outer_tangents : none;
    start(outer.hn, along.hn, shape.output, dstates_[0]);
    if (in_.info.states > 1) start(outer.cn, along.cn, shape.hidden, dstates_[1]);
    at::Tensor dy = outer.y.defined() ? of_direction(outer.y) : at::Tensor();
    at::Tensor ddy = along.y.defined() ? of_direction(along.y) : at::Tensor();
    const auto cells_of = [&](const OutputTensors& of) {
      return of.cells.defined() ? of_direction(of.cells, shape.hidden) : at::Tensor();
    };
    const at::Tensor dcells = cells_of(outer), ddcells = cells_of(along);
    at::Tensor of_unprojected;
    if (shape.projected()) {
      projected_ = zeros({shape.rows(), copies_, shape.output});
      if (dy.defined()) values(projected_).copy_(dy);
      if (ddy.defined()) tangents(projected_).copy_(ddy);
      of_unprojected = in_.empty({shape.batch, copies_, shape.hidden});
      dy = ddy = at::Tensor();
    }
    const at::Tensor packed = pack_backward();
    Steps<TangentBackward<T>> steps(in_, packed.defined(), threads_);
    for (Index s = shape.steps - 1; s >= 0; --s) {
      const Index active = stream_.active(s), row = stream_.row(s, 0);
      if (!packed.defined()) add_recurrent(s + 1);
      if (active == 0) continue;
      if (shape.projected()) unproject(row, active, of_unprojected);
      TangentBackward<T> step{active,      shape.hidden, copies_ > 1, written<T>(gates_, row),
                              previous(s), {},           {},          {}};
      if (!shape.projected()) step.next[0] = read<T>(h_, dh_, row);
      step.next[1] = read<T>(cells_, row);
      step.outer[0] = read<T>(dy, ddy, row);
      step.outer[1] = read<T>(dcells, ddcells, row);
      step.dstates[0] = written<T>(shape.projected() ? of_unprojected : dstates_[0], 0);
      step.dstates[1] = written<T>(dstates_[1], 0);
      set_recurrent(step, packed, s + 1);
      steps.add(step);
    }
    if (!packed.defined()) return add_recurrent(0);
    TangentBackward<T> last{0, shape.hidden, copies_ > 1, {}, {}, {}, {}, {}};
    last.dstates[0] = written<T>(dstates_[0], 0);
    set_recurrent(last, packed, 0);
    steps.add(last);
    steps.run();
  }

  // The gradients of the initial states [B, N, units].
  const at::Tensor& dstates(int state) const { return dstates_[state]; }

  // What the gates' gradients make of x, added to what is there.
  void add_input_gradient(const at::Tensor& dx) const {
    const at::Tensor sum = dx.view({in_.shape.rows(), in_.shape.input});
    if (copies_ == 1) return void(sum.addmm_(input_gates(0), w_ih_));
    sum.addmm_(input_gates(1), w_ih_);
    add_product(sum, input_gates(0), dw_ih_);
  }

  // The tangent of a weight's gradient.
  at::Tensor weight_gradient(int slot) const {
    const auto product = [&](const at::Tensor& value, const at::Tensor& tangent, const at::Tensor& right,
                             const at::Tensor& dright) {
      at::Tensor sum = at::mm(tangent.t(), right);
      add_product(sum, value.t(), dright);
      return sum;
    };
    switch (slot) {
      case 0:
        return by_gate(product(input_gates(0), input_gates(1), x_, dx_), 0, in_.info.x_first);
      case 1:
        return by_gate(product(recurrent_gates(0), recurrent_gates(1), h_before(), before(dh_, dh0_)), 0,
                       in_.info.h_first);
      case 2:
        return by_gate(input_gates(1).sum(0), 0, in_.info.x_first);
      case 3:
        return by_gate(recurrent_gates(1).sum(0), 0, in_.info.h_first);
      default:
        return product(values(projected_), tangents(projected_), values(unprojected_),
                       tangents(unprojected_));
    }
  }

  GateGradients::Direction gate_gradients() const {
    GateGradients::Direction all;
    all.input = by_gate(input_gates(0), 1, in_.info.x_first);
    all.recurrent = in_.info.accumulators == in_.info.gates
                        ? all.input
                        : by_gate(recurrent_gates(0), 1, in_.info.h_first);
    all.h_before = h_before();
    if (in_.shape.projected()) {
      all.unprojected = values(unprojected_);
      all.projected = values(projected_);
    }
    return all;
  }

 private:
  // This direction's columns of an output.
  at::Tensor of_direction(const at::Tensor& y) const { return of_direction(y, in_.shape.output); }
  at::Tensor of_direction(const at::Tensor& t, Index units) const {
    return t.view({in_.shape.rows(), in_.directions * units}).narrow(1, direction_ * units, units);
  }

  at::Tensor zeros(at::IntArrayRef sizes) const { return at::zeros(sizes, in_.x.options()); }

  // [rows, N, units] whose rows do not all lie at the same place of a page: columns of such rows share a few
  // lines of the cache, and products that read them take longer.
  at::Tensor padded(Index units) const {
    const Index line = 64 / Index(sizeof(T));
    return in_.empty({in_.shape.rows(), copies_, units + line}).narrow(2, 0, units);
  }

  // Blocks of H along a dimension: of the accumulators from `first` on, of those in torch's order of gates.
  at::Tensor by_accumulator(const at::Tensor& gates, int first) const {
    return reordered(gates, 0, [&](int a) { return in_.info.gate_of[first + a]; });
  }
  at::Tensor by_gate(const at::Tensor& accumulators, int dim, int first) const {
    return reordered(accumulators, dim, [&](int gate) {
      int a = 0;
      while (in_.info.gate_of[first + a] != gate) ++a;
      return a;
    });
  }

  template <class BlockOf>
  at::Tensor reordered(const at::Tensor& t, int dim, BlockOf block_of) const {
    if (!t.defined()) return t;
    const Index H = in_.shape.hidden;
    std::vector<at::Tensor> blocks;
    bool in_order = true;
    for (int g = 0; g < in_.info.gates; ++g) {
      in_order = in_order && block_of(g) == g;
      blocks.push_back(t.narrow(dim, block_of(g) * H, H));
    }
    return in_order ? t : at::cat(blocks, dim);
  }

  // The columns that a product feeds from accumulator `first` on.
  at::Tensor fed(const at::Tensor& accumulators, int first) const {
    return accumulators.narrow(1, first * in_.shape.hidden, in_.info.gates * in_.shape.hidden);
  }
  at::Tensor input_gates(int copy) const { return fed(gates_.select(1, copy), in_.info.x_first); }
  at::Tensor recurrent_gates(int copy) const { return fed(gates_.select(1, copy), in_.info.h_first); }

  Index row_before(Index s) const { return s > 0 ? stream_.row(s - 1, 0) : 0; }

  // Everything of the accumulators but the recurrent product of tangents.
  void accumulate() {
    const auto fill = [&](const at::Tensor& sums, const at::Tensor& b_ih, const at::Tensor& b_hh) {
      const at::Tensor start = zeros({1, sums.size(1)});
      if (b_ih.defined()) fed(start, in_.info.x_first).add_(by_accumulator(b_ih, in_.info.x_first));
      if (b_hh.defined()) fed(start, in_.info.h_first).add_(by_accumulator(b_hh, in_.info.h_first));
      sums.copy_(start);
    };
    if (in_.info.taped > 0 && !taped_.gates) {
      const at::Tensor sums = values(gates_);
      fill(sums, in_.weight(direction_, 2), in_.weight(direction_, 3));
      add_product(fed(sums, in_.info.x_first), x_, w_ih_.t());
      add_product(fed(sums, in_.info.h_first), h_before(), w_hh_.t());
    }
    if (copies_ == 1) return;
    const at::Tensor along = tangents(gates_);
    fill(along, db_ih_, db_hh_);
    add_product(fed(along, in_.info.x_first), dx_, w_ih_.t());
    add_product(fed(along, in_.info.x_first), x_, transposed(dw_ih_));
    if (dw_hh_.defined()) add_product(fed(along, in_.info.h_first), h_before(), dw_hh_.t());
  }

  // The values of h are known: where a kernel needs them it only reads them.
  DualRows<T> h_and_tangents(Index row) const {
    if (!dh_.defined()) return {};
    const bool reads = in_.info.taped == 0 || taped_.gates;
    T* const h = reads ? const_cast<T*>(h_.const_data_ptr<T>()) + row * h_.stride(0) : nullptr;
    return {h, dh_.mutable_data_ptr<T>() + row * dh_.stride(0), dh_.stride(0)};
  }

  PreviousStates<T> previous(Index s) const {
    const Index from = row_before(s);
    PreviousStates<T> states{stream_.active(s - 1), {}, {}};
    if (!in_.shape.projected()) {
      states.before[0] = read<T>(h_, dh_, from);
      states.initial[0] = read<T>(h0_, dh0_, 0);
    }
    states.before[1] = read<T>(cells_, from);
    states.initial[1] = read<T>(c0_, dc0_, 0);
    return states;
  }

  // For every row what [rows, units] holds for the one before it, or its initial state; undefined if all of
  // it is.
  at::Tensor before(const at::Tensor& states, const at::Tensor& initial) const {
    if (!states.defined()) return states;
    const at::Tensor out = in_.empty(states.sizes());
    // Neighbours that stay neighbours are copied at once.
    Index to = 0, from = 0, count = 0;
    bool starts = false;
    const auto flush = [&] {
      if (count == 0) return;
      const at::Tensor target = out.narrow(0, to, count);
      if (starts && !initial.defined()) return void(target.zero_());
      target.copy_((starts ? initial : states).narrow(0, from, count));
    };
    const auto add = [&](Index row, Index source, Index n, bool from_initial) {
      if (n == 0) return;
      if (count > 0 && starts == from_initial && row == to + count && source == from + count)
        return void(count += n);
      flush();
      to = row, from = source, count = n, starts = from_initial;
    };
    for (Index t = 0; t < in_.shape.steps; ++t) {
      const Index s = stream_.step(t);  // the order of rows; position and step are each other's mirror
      const Index active = stream_.active(s), goes_on = std::min(active, stream_.active(s - 1));
      add(stream_.row(s, 0), row_before(s), goes_on, false);
      add(stream_.row(s, goes_on), goes_on, active - goes_on, true);
    }
    flush();
    return out;
  }

  const at::Tensor& h_before() const {
    if (!h_before_.defined()) h_before_ = before(h_, h0_);
    return h_before_;
  }

  // The last of each row. Every row is active at the first step.
  void copy_final(const at::Tensor& states, const at::Tensor& out) const {
    for (Index s = 0; s < in_.shape.steps; ++s) {
      const Index goes_on = stream_.active(s + 1), ends = stream_.active(s) - goes_on;
      if (ends > 0) out.narrow(0, goes_on, ends).copy_(states.narrow(0, stream_.row(s, goes_on), ends));
    }
  }

  // Gradients of the final states, each for its direction, to be carried back: [B, N, units].
  void start(const at::Tensor& value, const at::Tensor& tangent, Index units, at::Tensor& out) const {
    out = zeros({in_.shape.batch, copies_, units});
    if (value.defined()) values(out).copy_(slice(value, direction_));
    if (tangent.defined()) tangents(out).copy_(slice(tangent, direction_));
  }

  // Weights for the recurrent product of a step's kernel; undefined where that is torch's.
  at::Tensor pack_forward() const {
    const TangentKernels<T>& kernels = cpu::tangent_kernels<T>(in_.cell);
    return pack(kernels.packed_forward(in_.shape.hidden), kernels.pack_forward, at::Tensor());
  }
  at::Tensor pack_backward() const {
    const TangentKernels<T>& kernels = cpu::tangent_kernels<T>(in_.cell);
    return pack(kernels.packed_backward(in_.shape.hidden, dw_hh_.defined()), kernels.pack_backward,
                dw_hh_in_torchs_order_);
  }
  at::Tensor pack(Index scalars, void (*kernel)(const RecurrentWeights<T>&, T*), const at::Tensor& dw) const {
    if (in_.on_gpu || in_.shape.projected() || scalars == 0) return {};
    at::Tensor packed = in_.empty({scalars});
    const at::Tensor& w = in_.weight(direction_, 1);
    kernel({in_.shape.hidden, w.const_data_ptr<T>(), dw.defined() ? dw.const_data_ptr<T>() : nullptr},
           packed.mutable_data_ptr<T>());
    return packed;
  }

  void set_recurrent(TangentBackward<T>& step, const at::Tensor& packed, Index s) const {
    if (!packed.defined() || stream_.active(s) == 0) return;
    step.recurrent = packed.const_data_ptr<T>();
    step.weights_have_tangents = dw_hh_.defined();
    step.after = read<T>(gates_, stream_.row(s, 0));
    step.after_rows = stream_.active(s);
  }

  // What the gates of position s make of the h before it.
  void add_recurrent(Index s) const {
    const Index active = stream_.active(s);
    if (active == 0) return;
    const Index row = stream_.row(s, 0);
    const at::Tensor dh = dstates_[0].narrow(0, 0, active), gates = gates_.narrow(0, row, active);
    stacked(dh).addmm_(fed(stacked(gates), in_.info.h_first), w_hh_);
    if (dw_hh_.defined()) tangents(dh).addmm_(fed(values(gates), in_.info.h_first), dw_hh_);
  }

  // All that reaches a projected h, and through the projection; a cell that can be projected has no direct
  // path from h to h.
  void unproject(Index row, Index active, const at::Tensor& out) const {
    const at::Tensor dh = projected_.narrow(0, row, active), carried = dstates_[0].narrow(0, 0, active);
    dh.add_(carried);
    carried.zero_();
    const at::Tensor du = out.narrow(0, 0, active);
    at::Tensor all = stacked(du);
    at::mm_out(all, stacked(dh), w_hr_);
    if (dw_hr_.defined()) tangents(du).addmm_(values(dh), dw_hr_);
  }

  const Inputs& in_;
  int direction_;
  Stream stream_;
  Index copies_;  // N: 2 with tangents, else 1
  int threads_;
  // Values; weights of gates in the order of the accumulators.
  at::Tensor x_, h_, h0_, c0_, w_ih_, w_hh_, w_hr_;
  mutable at::Tensor h_before_;  // once it was asked for
  // Their tangents, where there are any.
  at::Tensor dx_, dh_, dh0_, dc0_, dw_ih_, dw_hh_, dw_hh_in_torchs_order_, db_ih_, db_hh_, dw_hr_;
  Taped<T> taped_;
  at::Tensor gates_, cells_, unprojected_;  // [rows, N, A * H], [rows, N, H]
  at::Tensor dstates_[kMaxStates];          // carried backward [B, N, units]
  at::Tensor projected_;                    // gradients of the projected output [rows, N, P]
};

// All directions of a call.
template <class T>
class LayerPass {
 public:
  LayerPass(const Inputs& in, const at::Tensor& y, const at::Tensor& tape, const LayerTensors* along)
      : in_(in), y_(dense_if_defined(y)), along_(along ? dense_all(*along) : LayerTensors{}) {
    for (int d = 0; d < in.directions; ++d)
      directions_.emplace_back(in, d, y_, tape, along ? &along_ : nullptr);
  }

  // The outputs' tangents.
  OutputTensors forward() {
    const SequenceShape& shape = in_.shape;
    OutputTensors out{in_.empty(in_.output_sizes(shape.output)),
                      in_.empty({in_.directions, shape.batch, shape.output}),
                      {},
                      {}};
    if (in_.info.states > 1) out.cn = in_.empty({in_.directions, shape.batch, shape.hidden});
    if (in_.cells) out.cells = in_.empty(in_.output_sizes(shape.hidden));
    for (int d = 0; d < in_.directions; ++d)
      directions_[size_t(d)].forward({out.y, slice(out.hn, d), slice(out.cn, d), out.cells});
    return out;
  }

  // The gradients' tangents.
  LayerTensors backward(const OutputTensors& outer, const OutputTensors& outer_tangents,
                        const Wanted& wanted) {
    const OutputTensors g = dense_all(outer), dg = dense_all(outer_tangents);
    for (DirectionPass<T>& direction : directions_) direction.backward(g, &dg);
    LayerTensors out;
    if (wanted[0]) out.x = input_gradient();
    if (wanted[1]) out.h0 = initial_gradient(0, 1);
    if (wanted[2] && in_.info.states > 1) out.c0 = initial_gradient(1, 1);
    out.weights.resize(in_.weights.size());
    for (size_t i = 0; i < in_.weights.size(); ++i) {
      if (wanted[3 + i] && in_.weights[i].defined())
        out.weights[i] = directions_[i / kSlots].weight_gradient(int(i % kSlots));
    }
    return out;
  }

  GateGradients gate_gradients(const OutputTensors& outer) {
    const OutputTensors g = dense_all(outer);
    GateGradients out;
    for (DirectionPass<T>& direction : directions_) {
      direction.forward({});
      direction.backward(g, nullptr);
      out.directions.push_back(direction.gate_gradients());
    }
    out.dx = input_gradient();
    out.dh0 = initial_gradient(0, 0);
    if (in_.info.states > 1) out.dc0 = initial_gradient(1, 0);
    return out;
  }

 private:
  at::Tensor input_gradient() const {
    const at::Tensor dx = at::zeros(in_.x.sizes(), in_.x.options());
    for (const DirectionPass<T>& direction : directions_) direction.add_input_gradient(dx);
    return dx;
  }

  // Of all directions [D, B, units]: the value (copy 0) or the tangent.
  at::Tensor initial_gradient(int state, int copy) const {
    std::vector<at::Tensor> all;
    for (const DirectionPass<T>& direction : directions_)
      all.push_back(direction.dstates(state).select(1, copy).unsqueeze(0));
    return at::cat(all);
  }

  const Inputs& in_;
  at::Tensor y_;
  LayerTensors along_;
  std::vector<DirectionPass<T>> directions_;
};

// Calls body with a pass of the layer's type.
template <class Body>
auto with_pass(const Inputs& in, const at::Tensor& y, const at::Tensor& tape, const LayerTensors* along,
               Body body) {
  const c10::DeviceGuard guard(in.x.device());
  if (in.x.scalar_type() == at::kFloat) return body(LayerPass<float>(in, y, tape, along));
  return body(LayerPass<double>(in, y, tape, along));
}

}  // namespace

LayerTangents layer_tangents(const Inputs& in, const at::Tensor& y, const at::Tensor& tape,
                             const OutputTensors& outer, const OutputTensors& outer_tangents,
                             const LayerTensors& tangents, const Wanted& wanted) {
  const bool is_moved = any(tangents),
             is_wanted = std::find(wanted.begin(), wanted.end(), true) != wanted.end();
  if (!is_moved && !any(outer_tangents)) return {};
  return with_pass(in, y, is_wanted ? at::Tensor() : tape, &tangents, [&](auto pass) {
    LayerTangents out{pass.forward(), {}};
    if (is_wanted && (any(outer_tangents) || (any(outer) && is_moved)))
      out.gradients = pass.backward(outer, outer_tangents, wanted);
    return out;
  });
}

GateGradients gate_gradients(const Inputs& in, const at::Tensor& y, const OutputTensors& outer) {
  return with_pass(in, y, at::Tensor(), nullptr, [&](auto pass) { return pass.gate_gradients(outer); });
}

}  // namespace rnnfused
