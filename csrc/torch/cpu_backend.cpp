#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include "cpu/dispatch.h"
#include "torch/backends.h"

namespace rnnfused {

int threads_allowed() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

namespace {

template <class T>
const T* data_or_null(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

template <class T>
Weights<T> weights_of(const Inputs& in, int direction) {
  const auto at = [&](int slot) { return data_or_null<T>(in.weight(direction, slot)); };
  return {at(0), at(1), at(2), at(3), at(4)};
}

SequenceShape shape_of(const Inputs& in, int direction) {
  SequenceShape shape = in.shape;
  shape.reverse = direction == 1;
  return shape;
}

// A direction's part of states [D, B, units].
template <class T>
Rows<const T> rows_of(const at::Tensor& states, int direction, Index batch, Index units) {
  if (!states.defined()) return {nullptr, 0};
  return {states.const_data_ptr<T>() + direction * batch * units, units};
}

}  // namespace

at::DimVector tape_sizes(const Inputs& in, bool recompute) {
  const TapeSize size = cpu::tape_size(in.cell, in.shape.projected());
  const Index scalar_bytes = Index(c10::elementSize(compute_type(in.x.scalar_type())));
  return {in.directions, size.scalars(in.shape.rows(), in.shape.hidden, recompute, scalar_bytes)};
}

ForwardTensors outputs_on_cpu(const Inputs& in, const at::Tensor& hn, const at::Tensor& cn, bool save,
                              bool recompute) {
  return {in.empty(in.output_sizes()), hn, cn, save ? in.empty(tape_sizes(in, recompute)) : at::Tensor()};
}

template <class T>
Layer<T> forward_layer(const Inputs& in, const ForwardTensors& out, bool recompute) {
  Layer<T> layer{};
  layer.directions = in.directions;
  for (int d = 0; d < in.directions; ++d) {
    ForwardArgs<T>& args = layer.forward[d];
    args.shape = shape_of(in, d);
    args.weights = weights_of<T>(in, d);
    args.x = {in.x.const_data_ptr<T>(), in.shape.input};
    args.initial[0] = rows_of<T>(in.h0, d, in.shape.batch, in.shape.output);
    args.initial[1] = rows_of<T>(in.c0, d, in.shape.batch, in.shape.hidden);
    args.y = {out.y.mutable_data_ptr<T>() + d * in.shape.output, in.directions * in.shape.output};
    args.final[0] = {out.hn.mutable_data_ptr<T>() + d * in.shape.batch * in.shape.output, in.shape.output};
    if (out.cn.defined()) {
      args.final[1] = {out.cn.mutable_data_ptr<T>() + d * in.shape.batch * in.shape.hidden, in.shape.hidden};
    }
    args.tape = out.tape.defined() ? out.tape.mutable_data_ptr<T>() + d * out.tape.size(1) : nullptr;
    args.recompute = recompute;
  }
  return layer;
}
template Layer<float> forward_layer(const Inputs&, const ForwardTensors&, bool);
template Layer<double> forward_layer(const Inputs&, const ForwardTensors&, bool);

void forward_on_cpu(c10::ArrayRef<Inputs> layers, c10::ArrayRef<ForwardTensors> out, bool recompute,
                    cpu::PackedStack* packed) {
  for_dtype(layers[0].x, [&](auto type) {
    using T = decltype(type);
    c10::SmallVector<Layer<T>, 1> stack;
    for (size_t i = 0; i < layers.size(); ++i)
      stack.push_back(forward_layer<T>(layers[i], out[i], recompute));
    const Stack<T> call{int(stack.size()), stack.data()};
    const CellId cell = layers[0].cell;
    packed ? packed->forward(cell, call, threads_allowed()) : cpu::forward(cell, call, threads_allowed());
  });
}

void backward_on_cpu(const Inputs& in, const BackwardTensors& tensors, bool recompute) {
  for_dtype(in.x, [&](auto type) {
    using T = decltype(type);
    const auto data = [&](int i) -> T* {
      const at::Tensor* gradient = tensors.gradient(size_t(i));
      return gradient ? gradient->mutable_data_ptr<T>() : nullptr;
    };
    const Index tape_size = tensors.tape.size(1);
    LayerGradient<T> layer{};
    layer.directions = in.directions;
    for (int d = 0; d < in.directions; ++d) {
      BackwardArgs<T>& args = layer.backward[d];
      const Index stride = in.directions * in.shape.output;
      args.shape = shape_of(in, d);
      args.weights = weights_of<T>(in, d);
      args.x = {in.x.const_data_ptr<T>(), in.shape.input};
      args.initial[0] = rows_of<T>(in.h0, d, in.shape.batch, in.shape.output);
      args.initial[1] = rows_of<T>(in.c0, d, in.shape.batch, in.shape.hidden);
      args.y = {tensors.y.const_data_ptr<T>() + d * in.shape.output, stride};
      args.tape = tensors.tape.const_data_ptr<T>() + d * tape_size;
      args.recompute = recompute;
      if (tensors.dy.defined()) args.dy = {tensors.dy.const_data_ptr<T>() + d * in.shape.output, stride};
      args.dfinal[0] = rows_of<T>(tensors.dh, d, in.shape.batch, in.shape.output);
      args.dfinal[1] = rows_of<T>(tensors.dc, d, in.shape.batch, in.shape.hidden);
      args.dx = {data(0), in.shape.input};
      args.accumulate_dx = d > 0;
      args.dinitial[0] = data(1) ? data(1) + d * in.shape.batch * in.shape.output : nullptr;
      args.dinitial[1] = data(2) ? data(2) + d * in.shape.batch * in.shape.hidden : nullptr;
      T** const slots[kSlots] = {&args.dinput, &args.drecurrent, &args.dinput_bias, &args.dbias,
                                 &args.dprojection};
      for (int slot = 0; slot < kSlots; ++slot) *slots[slot] = data(3 + d * kSlots + slot);
    }
    cpu::backward(in.cell, layer, threads_allowed());
  });
}

}  // namespace rnnfused
