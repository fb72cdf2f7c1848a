#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <deque>

#include "cpu/dispatch.h"
#include "torch/backends.h"

namespace rnnfused {

int threads_allowed() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

namespace {

// torch has other names for the same types of 16 bits.
template <class S>
const S* data_or_null(const at::Tensor& t) {
  return t.defined() ? static_cast<const S*>(t.const_data_ptr()) : nullptr;
}

template <class S>
S* mutable_data_or_null(const at::Tensor& t) {
  return t.defined() ? static_cast<S*>(t.mutable_data_ptr()) : nullptr;
}

template <class S>
Weights<S> weights_of(const Inputs& in, int direction) {
  const auto matrix = [&](int slot) { return data_or_null<S>(in.weight(direction, slot)); };
  const auto bias = [&](int slot) { return data_or_null<Compute<S>>(in.weight(direction, slot)); };
  const auto scales = [&](int slot) {
    return in.scales.empty() ? nullptr
                             : data_or_null<float>(in.scales[size_t(direction * kScaleSlots + slot)]);
  };
  return {matrix(0), matrix(1), bias(2), bias(3), matrix(4), scales(0), scales(1), scales(2)};
}

SequenceShape shape_of(const Inputs& in, int direction) {
  SequenceShape shape = in.shape;
  shape.reverse = direction == 1;
  return shape;
}

// A direction's part of the caller's states [D, B, units], or of their gradients, by the kernels' sequences.
template <class T>
Rows<T> states_of(T* data, const Inputs& in, int direction, Index units, bool initial) {
  if (!data) return {nullptr, 0};
  const Sequences& s = *in.sequences;
  const std::vector<Index>* const places = initial ? s.initial : s.final;
  return {data + direction * s.callers_batch * units, units, s.placed ? places[direction].data() : nullptr};
}

// Its part of the caller's rows [rows, columns], or of their gradients.
template <class T>
Rows<T> rows_of(T* data, const Inputs& in, Index columns, Index first = 0) {
  if (!data) return {nullptr, 0};
  return {data + first, columns, in.sequences->placed ? in.sequences->places.data() : nullptr};
}

// What no kernel writes: rows that are in no sequence.
void clear_beyond(const at::Tensor& rows, const Inputs& in) {
  const size_t bytes = size_t(rows.size(-1)) * rows.itemsize();
  char* const data = static_cast<char*>(rows.mutable_data_ptr());
  for (const Index row : in.sequences->beyond) std::memset(data + size_t(row) * bytes, 0, bytes);
}

// A tape has room for units in whole cache lines; where vectors are shorter the kernels leave a rest. It is
// an output of the operator, and the same on every run.
void clear_rest(const at::Tensor& tape, const Inputs& in, bool recompute) {
  const Index units = whole_vectors(tape.scalar_type(), in.shape.hidden);
  const Index used = in.options.tape_size().of_units(in.rows, units, recompute);
  const size_t bytes = tape.itemsize(), rest = size_t(tape.size(1) - used) * bytes;
  char* const data = static_cast<char*>(tape.mutable_data_ptr());
  for (Index d = 0; rest > 0 && d < tape.size(0); ++d)
    std::memset(data + size_t(d * tape.size(1) + used) * bytes, 0, rest);
}

}  // namespace

at::DimVector tape_sizes(const Inputs& in, bool recompute) {
  const TapeSize size = tape_size(in.options, in.x);
  const Index scalar_bytes = Index(c10::elementSize(tape_type(in.x)));
  return {in.directions, size.scalars(in.rows, in.shape.hidden, recompute, scalar_bytes)};
}

ForwardTensors outputs_on_cpu(const Inputs& in, const at::Tensor& hn, const at::Tensor& cn, bool save,
                              bool recompute) {
  ForwardTensors out{in.empty(in.output_sizes(in.shape.output)), hn, cn, {}, {}};
  clear_beyond(out.y, in);
  if (in.cells) {
    out.cells = in.empty_computed(in.output_sizes(in.shape.hidden));
    clear_beyond(out.cells, in);
  }
  if (save) {
    out.tape = in.empty(tape_sizes(in, recompute));
    clear_rest(out.tape, in, recompute);
  }
  return out;
}

template <class S>
Layer<S> forward_layer(const Inputs& in, const ForwardTensors& out, bool recompute) {
  using T = Compute<S>;
  using Q = Stored<S>;
  Layer<S> layer{};
  layer.directions = in.directions;
  for (int d = 0; d < in.directions; ++d) {
    ForwardArgs<S>& args = layer.forward[d];
    args.shape = shape_of(in, d);
    args.weights = weights_of<S>(in, d);
    args.x = rows_of(data_or_null<Q>(in.x), in, in.shape.input);
    args.y =
        rows_of(mutable_data_or_null<Q>(out.y), in, in.directions * in.shape.output, d * in.shape.output);
    args.cells =
        rows_of(mutable_data_or_null<T>(out.cells), in, in.directions * in.shape.hidden, d * in.shape.hidden);
    args.initial[0] = states_of(data_or_null<T>(in.h0), in, d, in.shape.output, true);
    args.initial[1] =
        states_of(data_or_null<T>(in.c0), in, d, in.options.second_state(in.shape.hidden), true);
    args.final[0] = states_of(mutable_data_or_null<T>(out.hn), in, d, in.shape.output, false);
    args.final[1] =
        states_of(mutable_data_or_null<T>(out.cn), in, d, in.options.second_state(in.shape.hidden), false);
    args.tape = out.tape.defined() ? mutable_data_or_null<Q>(out.tape) + d * out.tape.size(1) : nullptr;
    args.recompute = recompute;
  }
  return layer;
}
template Layer<float> forward_layer(const Inputs&, const ForwardTensors&, bool);
template Layer<double> forward_layer(const Inputs&, const ForwardTensors&, bool);
template Layer<BFloat16> forward_layer(const Inputs&, const ForwardTensors&, bool);
template Layer<Half> forward_layer(const Inputs&, const ForwardTensors&, bool);
template Layer<Int8> forward_layer(const Inputs&, const ForwardTensors&, bool);

template <class S>
template <class Args>
void Varied<S>::vary(Args& args, const Inputs& in, int direction) {
  const LayerOptions& o = in.options;
  Variation<S>& v = variation_[direction] = o.variation<S>();
  static_cast<VariationParameters<const S>&>(v) =
      parameters_of(o, [&](int slot) { return data_or_null<S>(in.weight(direction, slot)); });
  v.hidden = in.shape.hidden, v.unit_scalars = in.unit_scalars;
  v.seed = uint64_t(in.seed), v.direction = direction;
  v.numbers = in.sequences->numbers.empty() ? nullptr : in.sequences->numbers.data();
  v.batch = in.sequences->numbered_batch;
  args.shape.hidden = o.info.gates * in.unit_scalars;
  args.shape.input -= o.attends();
  args.variation = &v;
}

template <class S>
Varied<S>::Varied(Layer<S>& layer, const Inputs& in) {
  for (int d = 0; d < in.directions; ++d) vary(layer.forward[d], in, d);
}

template <class S>
Varied<S>::Varied(LayerGradient<S>& layer, const Inputs& in, const BackwardTensors& tensors) {
  for (int d = 0; d < in.directions; ++d) {
    BackwardArgs<S>& args = layer.backward[d];
    vary(args, in, d);
    gradient_[d] = parameters_of(in.options, [&](int slot) -> S* {
      const at::Tensor* const found = tensors.gradient(size_t(3 + d * kSlots + slot));
      return found ? mutable_data_or_null<S>(*found) : nullptr;
    });
    args.dvariation = &gradient_[d];
    if (!variation_[d].multiplies()) args.drecurrent = {};
  }
}
template class Varied<float>;
template class Varied<double>;

void forward_on_cpu(c10::ArrayRef<Inputs> layers, c10::ArrayRef<ForwardTensors> out, bool recompute,
                    cpu::PackedStack* packed) {
  for_weights(layers[0], [&](auto weight) {
    using S = decltype(weight);
    c10::SmallVector<Layer<S>, 1> stack;
    for (size_t i = 0; i < layers.size(); ++i)
      stack.push_back(forward_layer<S>(layers[i], out[i], recompute));
    [[maybe_unused]] std::deque<Varied<S>> varied;
    if constexpr (kAsComputed<S>) {
      for (size_t i = 0; layers[0].options.varied && i < layers.size(); ++i)
        varied.emplace_back(stack[i], layers[i]);
    }
    const Stack<S> call{int(stack.size()), stack.data()};
    const CellId cell = layers[0].cell;
    packed ? packed->forward(cell, call, threads_allowed()) : cpu::forward(cell, call, threads_allowed());
  });
}

template <class S>
LayerGradient<S> backward_layer(const Inputs& in, const BackwardTensors& tensors, bool recompute) {
  using T = Compute<S>;
  const auto data = [&](int i) -> T* {
    const at::Tensor* gradient = tensors.gradient(size_t(i));
    return gradient ? mutable_data_or_null<T>(*gradient) : nullptr;
  };
  const at::Tensor* const dx = tensors.gradient(0);
  const Index tape_size = tensors.tape.size(1);
  LayerGradient<S> layer{};
  layer.directions = in.directions;
  for (int d = 0; d < in.directions; ++d) {
    BackwardArgs<S>& args = layer.backward[d];
    const auto output_rows = [&](auto* of) {
      return rows_of(of, in, in.directions * in.shape.output, d * in.shape.output);
    };
    args.shape = shape_of(in, d);
    args.weights = weights_of<S>(in, d);
    args.x = rows_of(data_or_null<S>(in.x), in, in.shape.input);
    args.initial[0] = states_of(data_or_null<T>(in.h0), in, d, in.shape.output, true);
    args.initial[1] =
        states_of(data_or_null<T>(in.c0), in, d, in.options.second_state(in.shape.hidden), true);
    args.y = output_rows(data_or_null<S>(tensors.y));
    args.tape = data_or_null<S>(tensors.tape) + d * tape_size;
    args.recompute = recompute;
    args.dy = output_rows(data_or_null<S>(tensors.dy));
    args.dcells =
        rows_of(data_or_null<T>(tensors.dcells), in, in.directions * in.shape.hidden, d * in.shape.hidden);
    args.dfinal[0] = states_of(data_or_null<T>(tensors.dh), in, d, in.shape.output, false);
    args.dfinal[1] =
        states_of(data_or_null<T>(tensors.dc), in, d, in.options.second_state(in.shape.hidden), false);
    if (dx) args.dx = rows_of(mutable_data_or_null<S>(*dx), in, dx->size(-1));
    args.accumulate_dx = d > 0;
    args.dinitial[0] = states_of(data(1), in, d, in.shape.output, true);
    args.dinitial[1] = states_of(data(2), in, d, in.options.second_state(in.shape.hidden), true);
    const auto matrix = [&](int slot) -> MatrixGradient<S> {
      const size_t place = size_t(3 + d * kSlots + slot);
      const at::Tensor* const gradient = tensors.gradient(place);
      if (!gradient || gradient->scalar_type() == compute_type(in.x.scalar_type())) return {data(int(place))};
      return {nullptr, mutable_data_or_null<S>(*gradient)};
    };
    args.dinput = matrix(0), args.drecurrent = matrix(1), args.dprojection = matrix(4);
    args.dinput_bias = data(3 + d * kSlots + 2), args.dbias = data(3 + d * kSlots + 3);
  }
  return layer;
}
template LayerGradient<float> backward_layer(const Inputs&, const BackwardTensors&, bool);
template LayerGradient<double> backward_layer(const Inputs&, const BackwardTensors&, bool);

void backward_on_cpu(const Inputs& in, const BackwardTensors& tensors, bool recompute) {
  if (const at::Tensor* dx = tensors.gradient(0)) clear_beyond(*dx, in);
  for_dtype(in.x, [&](auto type) {
    using S = decltype(type);
    LayerGradient<S> layer = backward_layer<S>(in, tensors, recompute);
    if constexpr (kAsComputed<S>) {
      if (in.options.varied) {
        const Varied<S> varied(layer, in, tensors);
        return cpu::backward(in.cell, layer, threads_allowed());
      }
    }
    cpu::backward(in.cell, layer, threads_allowed());
  });
}

}  // namespace rnnfused
