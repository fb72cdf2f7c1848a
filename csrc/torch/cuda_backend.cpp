#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <variant>

#include "core/log.h"
#include "core/stream.h"
#include "cuda/drivers.h"
#include "torch/backends.h"
#include "torch/gpu.h"
#include "torch/scalar_types.h"

namespace rnnfused {
namespace {

using RNNFUSED_ISA::Arena;

const void* data(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
void* mutable_data(const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// Products and copies inside a call are neither differentiated nor cast by autocast.
struct Plainly {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

const cuda::CellDrivers& drivers_of(const Inputs& in) {
  const cuda::Type type = cuda_type(in.x.scalar_type());
  return in.options.varied ? cuda::varied_drivers(type) : cuda::drivers(in.cell, type);
}

// What the drivers are told of a layer's options in each direction, and where the gradients go that they
// bring; in the type that is computed in.
template <class C>
class Variations {
 public:
  Variations(const Inputs& in, const DeviceWeights& weights) : in_(in) {
    for (int d = 0; d < in.directions; ++d) {
      Variation<C>& v = variation_[d] = in.options.variation<C>();
      static_cast<VariationParameters<const C>&>(v) = parameters_of(in.options, [&](int slot) -> const C* {
        const at::Tensor& own = weights.options[size_t(d * kSlots + slot)];
        return own.defined() ? own.const_data_ptr<C>() : nullptr;
      });
      v.hidden = v.unit_scalars = in.shape.hidden;
      v.seed = uint64_t(in.seed), v.direction = d;
      v.numbers = in.numbers.defined() ? in.numbers.const_data_ptr<Index>() : nullptr;
      v.batch = in.sequences->numbered_batch;
    }
  }

  void fill(cuda::Layer& layer) const {
    for (int d = 0; d < in_.directions; ++d) layer.variation[d] = &variation_[d];
  }
  void fill(cuda::BackwardLayer& layer, const BackwardTensors& tensors) {
    for (int d = 0; d < in_.directions; ++d) {
      gradients_[d] = parameters_of(in_.options, [&](int slot) -> C* {
        const at::Tensor* const wanted = tensors.gradient(size_t(3 + d * kSlots + slot));
        if (!wanted) return nullptr;
        if (wanted->scalar_type() != kType)
          narrowed_.emplace_back(*wanted, at::empty(wanted->sizes(), wanted->options().dtype(kType)));
        return (wanted->scalar_type() == kType ? *wanted : narrowed_.back().second).mutable_data_ptr<C>();
      });
      layer.dvariation[d] = &gradients_[d];
    }
  }
  // After the kernels.
  void store_gradients() const {
    for (const auto& [out, gradient] : narrowed_) out.copy_(gradient);
  }

 private:
  static constexpr at::ScalarType kType = c10::CppTypeToScalarType<C>::value;

  const Inputs& in_;
  Variation<C> variation_[kMaxDirections];
  VariationParameters<C> gradients_[kMaxDirections];
  std::vector<std::pair<at::Tensor, at::Tensor>> narrowed_;
};

// RNNFUSED_CUDA_DRIVER=stepwise: no resident kernels.
bool allows_resident() {
  const char* driver = std::getenv("RNNFUSED_CUDA_DRIVER");
  if (!driver || std::strcmp(driver, "resident") == 0) return true;
  TORCH_CHECK(std::strcmp(driver, "stepwise") == 0,
              "RNNFUSED_CUDA_DRIVER: expected resident or stepwise, got '", driver, "'");
  return false;
}

// Those of all directions one after the other.
at::Tensor side_by_side(const Inputs& in, int slot) {
  if (in.directions == 1 || !in.weight(0, slot).defined()) return in.weight(0, slot);
  return at::cat({in.weight(0, slot), in.weight(1, slot)});
}

// A call on the device: weights as the drivers read them, and everything they need beside tensors.
struct Call : DeviceWeights {
  const Inputs& in;
  Plainly plainly;
  c10::DeviceGuard guard;
  const cuda::CellDrivers& drivers;
  std::unique_ptr<cuda::Matmul> matmul;
  cuda::StreamHandle stream;
  at::Tensor scratch;
  // Of a layer with options.
  std::variant<std::monostate, Variations<float>, Variations<double>> variations;

  explicit Call(const Inputs& inputs, const DeviceWeights* prepared = nullptr)
      : DeviceWeights(prepared ? *prepared : weights_on_gpu(inputs)),
        in(inputs),
        guard(inputs.x.device()),
        drivers(drivers_of(inputs)),
        matmul(gpu::matmul(inputs.x.device())),
        stream(gpu::current_stream(inputs.x.device())) {
    if (!in.options.varied) return;
    if (compute_type(in.x.scalar_type()) == at::kDouble) {
      variations.emplace<Variations<double>>(in, *this);
    } else {
      variations.emplace<Variations<float>>(in, *this);
    }
  }

  // Calls body with what there is of a layer's options.
  template <class Body>
  void with_variations(Body body) {
    std::visit(
        [&](auto& all) {
          if constexpr (!std::is_same_v<decltype(all), std::monostate&>) body(all);
        },
        variations);
  }

  // What has a row for every unit of every gate.
  Index gate_rows() const { return in.info.gates * in.shape.hidden; }

  void fill(cuda::Layer& layer, bool recompute) {
    layer.type = cuda_type(in.x.scalar_type());
    layer.directions = in.directions;
    layer.shape = in.shape;
    if (in.options.varied) layer.shape.hidden = gate_rows(), layer.shape.input -= in.options.attends();
    layer.x = data(in.x);
    layer.x_stride = in.shape.input;
    layer.input_weights = data(input_weights);
    layer.recurrent_weights = data(recurrent_weights);
    layer.projection = data(projection);
    layer.lengths = in.lengths.defined() ? in.lengths.const_data_ptr<Index>() : nullptr;
    layer.resets = in.resets.defined() ? in.resets.const_data_ptr<bool>() : nullptr;
    for (int d = 0; d < in.directions; ++d) {
      layer.input_bias[d] = data(in.weight(d, 2));
      layer.bias[d] = data(in.weight(d, 3));
    }
    layer.recompute = recompute;
    layer.allows_resident = allows_resident();
    layer.allows_tf32 = gpu::allows_tf32();
    with_variations([&](auto& all) { all.fill(layer); });
  }

  // Memory for the call's work. It is freed when the call returns, before the kernels have run: torch gives
  // it to later work of the same stream only.
  void* take_scratch(const char* what, const cuda::Work& work) {
    if (logs_plans()) {
      std::fprintf(stderr,
                   "rnnfused: %s %s T=%lld B=%lld I=%lld H=%lld directions=%d device=%s driver=%s units=%d "
                   "cluster=%d slices=%lld chunk_rows=%lld scratch_bytes=%lld\n",
                   what, in.info.name, (long long)in.shape.steps, (long long)in.shape.batch,
                   (long long)in.shape.input, (long long)in.shape.hidden, in.directions,
                   in.x.device().str().c_str(), cuda::name_of(work.plan.driver), work.plan.units,
                   work.plan.resident.cluster, (long long)work.plan.resident.slices,
                   (long long)work.plan.chunk_rows, (long long)work.scratch_bytes);
    }
    if (!scratch.defined()) scratch = at::empty({work.scratch_bytes}, in.x.options().dtype(at::kByte));
    TORCH_INTERNAL_ASSERT(scratch.numel() >= work.scratch_bytes);
    return mutable_data(scratch);
  }

  // A state or its gradient, which the kernels overwrite.
  at::Tensor running(const at::Tensor& from, at::IntArrayRef sizes, at::ScalarType type) const {
    if (!from.defined()) return at::zeros(sizes, in.x.options().dtype(type));
    return from.to(type, /*non_blocking=*/false, /*copy=*/true).view(sizes);
  }

  // Throws where the rule by which the tape was allocated and the drivers' layout of it part.
  void* tape_data(const at::Tensor& tape, const cuda::Layer& layer) const {
    TORCH_INTERNAL_ASSERT(Index(tape.nbytes()) >= drivers.tape_bytes(layer));
    return mutable_data(tape);
  }
};

// The input without what lies beyond lengths, which backward multiplies by zeros: it may be no number.
at::Tensor finite_input(const Inputs& in) {
  if (!in.lengths.defined()) return in.x;
  const at::Tensor steps = at::arange(in.shape.steps, in.lengths.options()).unsqueeze(1);
  return in.x.masked_fill(steps.ge(in.lengths).unsqueeze(-1), 0);
}

// All but its scratch.
cuda::ForwardLayer layer_of(Call& call, const StepTensors& step) {
  cuda::ForwardLayer layer{};
  call.fill(layer, /*recompute=*/false);
  // One step gains nothing by it, and rows may sit it out.
  layer.allows_resident = false;
  layer.x = data(step.x);
  layer.active = step.active.defined() ? step.active.const_data_ptr<bool>() : nullptr;
  layer.chunk_bytes = gpu::chunk_bytes();
  layer.h = mutable_data(call.in.h0);
  layer.h_wide = mutable_data(step.h_wide);
  layer.c = mutable_data(call.in.c0);
  layer.y = mutable_data(step.y);
  return layer;
}

}  // namespace

DeviceWeights weights_on_gpu(const Inputs& in) {
  const Plainly plainly;
  const c10::DeviceGuard guard(in.x.device());
  // What lies as the drivers read it is not copied.
  std::vector<at::Tensor> blocks;
  bool in_order = in.directions == 1;
  for (int d = 0; d < in.directions; ++d) {
    for (int g = 0; g < in.info.gates; ++g) {
      const int gate = drivers_of(in).input_gates[g];
      in_order = in_order && gate == g;
      blocks.push_back(in.weight(d, 0).narrow(0, gate * in.shape.hidden, in.shape.hidden));
    }
  }
  DeviceWeights found{in_order ? in.weight(0, 0) : at::cat(blocks),
                      side_by_side(in, kWeightHh),
                      side_by_side(in, kWeightHr),
                      {}};
  if (!in.options.varied) return found;
  const at::ScalarType compute = compute_type(in.x.scalar_type());
  found.options.resize(in.weights.size());
  for (int d = 0; d < in.directions; ++d) {
    parameters_of(in.options, [&](int slot) -> const void* {
      const at::Tensor& own = in.weight(d, slot);
      if (own.defined()) found.options[size_t(d * kSlots + slot)] = own.to(compute);
      return nullptr;
    });
  }
  return found;
}

ForwardTensors forward_on_gpu(const Inputs& in, bool save, bool recompute, const DeviceWeights* prepared) {
  Call call(in, prepared);
  const at::ScalarType compute = compute_type(in.x.scalar_type());
  ForwardTensors out;
  out.y = in.empty(in.output_sizes(in.shape.output));
  if (in.cells) out.cells = in.empty(in.output_sizes(in.shape.hidden));
  out.hn = call.running(in.h0, in.state_sizes(0), in.h0.scalar_type());
  if (in.c0.defined()) out.cn = call.running(in.c0, in.state_sizes(1), compute);
  if (save) out.tape = at::empty(tape_sizes(in, recompute), in.x.options().dtype(compute));
  cuda::ForwardLayer layer{};
  call.fill(layer, recompute);
  layer.chunk_bytes = gpu::chunk_bytes();
  layer.h = mutable_data(out.hn);
  layer.c = mutable_data(out.cn);
  layer.y = mutable_data(out.y);
  layer.cells = mutable_data(out.cells);
  layer.tape = save ? call.tape_data(out.tape, layer) : nullptr;
  layer.scratch = call.take_scratch("forward", call.drivers.forward_work(layer));
  call.drivers.forward(layer, *call.matmul, call.stream);
  if (out.cn.defined()) out.cn = out.cn.to(in.x.scalar_type());
  return out;
}

Index step_bytes_on_gpu(const Inputs& in, const DeviceWeights& weights, const StepTensors& step) {
  Call call(in, &weights);
  return call.drivers.forward_work(layer_of(call, step)).scratch_bytes;
}

void step_on_gpu(const Inputs& in, const DeviceWeights& weights, const StepTensors& step) {
  Call call(in, &weights);
  cuda::ForwardLayer layer = layer_of(call, step);
  call.scratch = step.scratch;
  layer.scratch = call.take_scratch("step", call.drivers.forward_work(layer));
  call.drivers.forward(layer, *call.matmul, call.stream);
}

void backward_on_gpu(const Inputs& in, const BackwardTensors& tensors, bool recompute) {
  Call call(in);
  const at::ScalarType compute = compute_type(in.x.scalar_type());
  const at::Tensor c0 = in.c0.defined() ? in.c0.to(compute) : at::Tensor();
  const at::Tensor dh = call.running(tensors.dh, in.state_sizes(0), compute);
  const at::Tensor dc = in.c0.defined() ? call.running(tensors.dc, in.state_sizes(1), compute) : at::Tensor();
  const auto gradient = [&](int i) -> void* {
    const at::Tensor* t = tensors.gradient(size_t(i));
    return t ? mutable_data(*t) : nullptr;
  };
  // Hooks for saved tensors may have brought the tape back to any address.
  const bool aligned = reinterpret_cast<uintptr_t>(data(tensors.tape)) % Arena::kAlignment == 0;
  const at::Tensor tape = aligned ? tensors.tape : tensors.tape.clone();
  cuda::BackwardLayer layer{};
  call.fill(layer, recompute);
  const at::Tensor x = finite_input(in);
  layer.x = data(x);
  layer.chunk_bytes = gpu::chunk_bytes();
  layer.h0 = data(in.h0);
  layer.c0 = data(c0);
  layer.y = data(tensors.y);
  layer.tape = call.tape_data(tape, layer);
  layer.dy = data(tensors.dy);
  layer.dcells = data(tensors.dcells);
  layer.dh = mutable_data(dh);
  layer.dc = mutable_data(dc);
  layer.dx = gradient(0);
  for (int d = 0; d < in.directions; ++d) {
    void** const slots[] = {&layer.dinput[d], &layer.drecurrent[d], &layer.dinput_bias[d], &layer.dbias[d],
                            &layer.dprojection[d]};
    for (int slot = 0; slot < int(std::size(slots)); ++slot) *slots[slot] = gradient(3 + d * kSlots + slot);
    if (in.options.varied && !in.options.multiplies()) layer.drecurrent[d] = nullptr;
  }
  call.with_variations([&](auto& all) { all.fill(layer, tensors); });
  layer.scratch = call.take_scratch("backward", call.drivers.backward_work(layer));
  call.drivers.backward(layer, *call.matmul, call.stream);
  call.with_variations([](auto& all) { all.store_gradients(); });
  // Without a batch dimension, or of one step, the caller counts fewer dimensions.
  if (const at::Tensor* dh0 = tensors.gradient(1)) dh0->copy_(dh.view(dh0->sizes()));
  if (const at::Tensor* dc0 = tensors.gradient(2)) dc0->copy_(dc.view(dc0->sizes()));
}

}  // namespace rnnfused
