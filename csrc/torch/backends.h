// The seam between what a call is and where it runs: each back end's forward and backward on checked tensors.
#pragma once

#include <c10/util/Exception.h>

#include "cpu/dispatch.h"
#include "torch/inputs.h"

namespace rnnfused {

using OptionalTensors = std::vector<std::optional<at::Tensor>>;

struct ForwardTensors {
  at::Tensor y, hn, cn, cells, tape;  // all but the first two may be undefined
};

// Of a layer's tape, in scalars of tape_type.
at::DimVector tape_sizes(const Inputs& in, bool recompute);

struct BackwardTensors {
  at::Tensor y, tape;
  at::Tensor dy, dh, dc, dcells;  // undefined means zeros
  // Of x (or of its first columns alone), h0, c0 and every weight; absent where not wanted.
  OptionalTensors& gradients;

  const at::Tensor* gradient(size_t index) const { return gradients[index] ? &*gradients[index] : nullptr; }
};

// Memory for what a layer gives beside its final states. A stack's layers have theirs before any of them
// runs, since each one's y is the next one's x.
ForwardTensors outputs_on_cpu(const Inputs& in, const at::Tensor& hn, const at::Tensor& cn, bool save,
                              bool recompute);
template <class S>
Layer<S> forward_layer(const Inputs& in, const ForwardTensors& out, bool recompute);
// `packed`: the layers' weights, kept from call to call; null packs them anew.
void forward_on_cpu(c10::ArrayRef<Inputs> layers, c10::ArrayRef<ForwardTensors> out, bool recompute,
                    cpu::PackedStack* packed = nullptr);
template <class S>
LayerGradient<S> backward_layer(const Inputs& in, const BackwardTensors& tensors, bool recompute);
// The drivers' arguments of a layer with options, made of those of one without; they refer to this.
template <class S>
class Varied {
 public:
  Varied(Layer<S>& layer, const Inputs& in);
  Varied(LayerGradient<S>& layer, const Inputs& in, const BackwardTensors& tensors);
  Varied(const Varied&) = delete;

 private:
  template <class Args>
  void vary(Args& args, const Inputs& in, int direction);

  Variation<S> variation_[kMaxDirections];
  VariationParameters<S> gradient_[kMaxDirections];
};

// data(slot): where a direction's parameters, or their gradients, are.
template <class DataOf>
auto parameters_of(const LayerOptions& o, DataOf data) {
  using T = std::remove_pointer_t<decltype(data(0))>;
  return VariationParameters<T>{o.maths() == Maths::indrnn ? data(kWeightHh) : nullptr,
                                data(kPeephole),
                                data(kNormIhWeight),
                                data(kNormIhBias),
                                data(kNormHhWeight),
                                data(kNormHhBias),
                                data(kNormCWeight),
                                data(kNormCBias)};
}

void backward_on_cpu(const Inputs& in, const BackwardTensors& tensors, bool recompute);

// A layer's weights as the CUDA drivers read them, those of both directions side by side; undefined where
// absent.
struct DeviceWeights {
  at::Tensor input_weights;  // blocks of rows in the order of the accumulators
  at::Tensor recurrent_weights, projection;
  std::vector<at::Tensor> options;  // by Inputs::weights, what options bring, in the type that is computed in
};
DeviceWeights weights_on_gpu(const Inputs& in);

// `prepared`: the layer's weights, kept from call to call; null prepares them anew.
ForwardTensors forward_on_gpu(const Inputs& in, bool save, bool recompute,
                              const DeviceWeights* prepared = nullptr);

// Weights of layers over one another, kept from call to call: packed on the CPU when a call asks for them,
// and on a GPU prepared before, layer by layer.
struct KeptWeights {
  cpu::PackedStack packed;
  std::vector<DeviceWeights> prepared;
};

// One step of a layer in one direction, whose states are updated where they are: `in` holds h as products
// read it and c.
struct StepTensors {
  at::Tensor x, y;     // contiguous: [B, I] or [1, B, I], and the same of P
  at::Tensor h_wide;   // h in the type that is computed in [1, B, P]; undefined where that is the type of x
  at::Tensor active;   // bool [B], which rows take the step; or undefined: all
  at::Tensor scratch;  // as many bytes as are asked for
};
Index step_bytes_on_gpu(const Inputs& in, const DeviceWeights& weights, const StepTensors& step);
// Neither allocates nor waits, and reads no memory of the host: it can be captured in a graph.
void step_on_gpu(const Inputs& in, const DeviceWeights& weights, const StepTensors& step);

void backward_on_gpu(const Inputs& in, const BackwardTensors& tensors, bool recompute);

// Calls body with a scalar of the type.
template <class Body>
auto for_dtype(at::ScalarType type, Body body) {
  switch (type) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kHalf:
      return body(Half{});
    default:
      TORCH_INTERNAL_ASSERT(type == at::kBFloat16);
      return body(BFloat16{});
  }
}
template <class Body>
auto for_dtype(const at::Tensor& x, Body body) {
  return for_dtype(x.scalar_type(), body);
}

// Calls body with one of a layer's weights.
template <class Body>
void for_weights(const Inputs& in, Body body) {
  in.scales.empty() ? for_dtype(in.x, body) : body(Int8{});
}

// What a call may use of torch's threads.
int threads_allowed();

}  // namespace rnnfused
