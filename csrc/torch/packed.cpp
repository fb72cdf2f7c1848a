#include "torch/packed.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <deque>

#include "torch/autograd.h"
#include "torch/backends.h"
#include "torch/gpu.h"
#include "torch/watchers.h"

namespace rnnfused {

namespace {

// Throws RuntimeError for a tensor through which a derivative is to be taken.
void check_undifferentiated(const LayerOptions& o, const at::Tensor& t, const char* name) {
  const bool moved = t._fw_grad(0).defined(), followed = t.requires_grad() && at::GradMode::is_enabled();
  if (moved || followed) check_gradients(o);
  TORCH_CHECK(
      !moved && !followed, name,
      ": expected a tensor that nothing differentiates, since packed layers have no derivative; got one "
      "that does (call the module itself, or detach the tensor)");
}

void check_device(const LayerOptions& o, const c10::Device& device) {
  TORCH_CHECK(!(o.int8 && gpu::serves(device)),
              "module: expected tensors on the CPU with weights of 8 bits, got ", device);
}

// The layers of a call of one step, each on what the one below it gives.
std::vector<Inputs> layers_of(const Arguments& a) {
  const Form form = check(a);
  check_kernels(a.options, a.input);
  const auto sequences =
      std::make_shared<const Sequences>(a, form, /*on_device=*/gpu::serves(a.input.device()));
  std::vector<Inputs> layers;
  layers.reserve(size_t(a.options.layers));
  at::Tensor below = a.input;
  for (int64_t l = 0; l < a.options.layers; ++l) {
    layers.emplace_back(a, form, sequences, l, below);
    below = at::empty(layers.back().output_sizes(layers.back().shape.output), a.input.options());
  }
  return layers;
}

std::vector<DeviceWeights> prepared(const std::vector<Inputs>& layers) {
  std::vector<DeviceWeights> all;
  for (const Inputs& in : layers) all.push_back(weights_on_gpu(in));
  return all;
}

}  // namespace

Frozen::Frozen(const std::string& layer, Tensors params)
    : options_(layer_options(layer)), params_(std::move(params)) {
  // Not with the first call: that may be captured in a graph, which would prepare them in each replay.
  prepare();
}

void Frozen::prepare() {
  if (!kept_.prepared.empty()) return;
  if (params_.empty() || !params_[0].defined() || params_[0].dim() == 0) return;  // a call says what is wrong
  check_device(options_, params_[0].device());
  if (!gpu::serves(params_[0].device())) return;
  const Index features = params_[0].size(-1) + options_.attends();
  const at::Tensor x = at::empty(options_.step ? at::DimVector{1, features} : at::DimVector{1, 1, features},
                                 params_[0].options().requires_grad(false));
  const Arguments arguments{options_, x, {}, params_, {}};
  if (somebody_watches(arguments)) return;
  kept_.prepared = prepared(layers_of(arguments));
}

std::optional<Tensors> Frozen::forward(const at::Tensor& input, at::TensorList hx, const Layout& layout) {
  const Arguments arguments{options_, input, hx, params_, layout};
  // Weights of 8 bits have no derivative, and say so when somebody goes back to them.
  if (!options_.int8) {
    check_undifferentiated(options_, input, "input");
    for (const at::Tensor& state : hx) check_undifferentiated(options_, state, "hx");
  }
  if (somebody_watches(arguments)) return std::nullopt;
  const auto run = [&] {
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    prepare();  // where a mode watched when this was made; not below autograd, which counts as one
    const at::AutoDispatchBelowADInplaceOrView below;
    return recurrent(arguments, false, &kept_);
  };
  return without_gradients(arguments, run());
}

Stepper::Stepper(const std::string& layer, Tensors params, Tensors hx, at::ScalarType type,
                 const Stepper* before)
    : one_at_a_time_(before ? before->one_at_a_time_ : std::make_shared<std::recursive_mutex>()),
      options_(layer_options(layer)),
      type_(type) {
  const LayerOptions& o = options_;
  TORCH_CHECK_VALUE(!hx.empty() && hx[0].dim() == 3 && !params.empty(),
                    "hx: expected h [layers, batch, units]");
  const at::Tensor& h = hx[0];
  TORCH_CHECK(h.device().is_cpu() || gpu::serves(h.device()), "module: expected tensors on ", gpu::places(),
              ", got ", h.device());
  check_device(o, h.device());
  for (const at::Tensor& state : hx) TORCH_CHECK(state.is_contiguous(), "hx: expected contiguous tensors");
  const at::ScalarType stored = o.int8 ? at::kFloat : params[0].scalar_type();
  const at::Tensor x = at::empty({1, h.size(1), params[0].size(-1)}, h.options().dtype(stored));
  layers_ = layers_of({o, x, hx, params, {}});
  TORCH_CHECK(compute_type(stored) == h.scalar_type(), "hx: expected dtype ", compute_type(stored), ", got ",
              h.scalar_type());
  TORCH_CHECK(type == stored || type == compute_type(stored), "type: expected dtype ", stored, " or ",
              compute_type(stored), ", got ", type);
  if (layers_[0].on_gpu) prepare(hx);
}

void Stepper::prepare(const Tensors& hx) {
  kept_.prepared = prepared(layers_);
  const Inputs& last = layers_.back();
  const at::Tensor y = last.empty({last.shape.batch, last.shape.output});
  Index bytes = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Inputs& in = layers_[l];
    StepTensors step{in.x, output_of(l, y), {}, {}, {}};
    // Products read a rounded copy of h, which is made here and follows it.
    if (in.h0.scalar_type() != hx[0].scalar_type()) step.h_wide = hx[0].narrow(0, Index(l), 1);
    bytes = std::max(bytes, step_bytes_on_gpu(in, kept_.prepared[l], step));
    steps_.push_back(std::move(step));
  }
  const at::Tensor scratch = at::empty({bytes}, last.x.options().dtype(at::kByte));
  for (StepTensors& step : steps_) step.scratch = scratch;
}

at::Tensor Stepper::checked(const at::Tensor& x, const OptionalTensor& active,
                            const OptionalTensor& out) const {
  const Inputs& first = layers_[0];
  const Index batch = first.shape.batch;
  const c10::Device& device = first.x.device();
  check_tensor(x, "input", device, type_, {batch, first.shape.input});
  check_undifferentiated(options_, x, "input");
  if (active) check_tensor(*active, "active", device, at::kBool, {batch});
  if (out) {
    check_tensor(*out, "out", device, type_, {batch, layers_.back().shape.output});
    check_undifferentiated(options_, *out, "out");
    check_memory(*out, "out");
    TORCH_CHECK(out->is_contiguous(), "out: expected a contiguous tensor, got strides ", out->strides());
    at::assert_no_overlap(*out, x);
  }
  const at::Tensor in = dense(x, "input");
  const auto is_seen = [](const OptionalTensor& t) { return t && !is_plain(*t); };
  TORCH_CHECK(is_plain(in) && !is_seen(active) && !is_seen(out) && !thread_is_watched(),
              "Stepper: a step changes its state in place, which traces, transforms and modes cannot see: "
              "call the module itself");
  return in;
}

at::Tensor Stepper::step(const at::Tensor& x, const OptionalTensor& active, const OptionalTensor& out) {
  at::Tensor in = checked(x, active, out);
  const Inputs& first = layers_[0];
  const bool on_device = !steps_.empty(), as_stored = type_ == first.x.scalar_type();
  const std::lock_guard<std::recursive_mutex> lock(*one_at_a_time_);
  if (out) out->unsafeGetTensorImpl()->bump_version();
  at::Tensor y;
  if (as_stored && out) {
    y = *out;
  } else if (on_device && !as_stored) {
    // What stands between the caller's type and the weights' has a place of its own.
    in = steps_[0].x.squeeze(0).copy_(in);
    y = steps_.back().y;
  } else {
    in = as_stored ? in : in.to(first.x.scalar_type());
    y = first.empty({first.shape.batch, layers_.back().shape.output});
  }
  on_device ? step_on_device(in, active, y) : step_on_host(in, active, y);
  if (as_stored) return y;
  return out ? out->copy_(y) : y.to(type_);
}

void Stepper::step_on_device(const at::Tensor& x, const OptionalTensor& active, const at::Tensor& y) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    StepTensors step = steps_[l];
    if (l == 0) step.x = x;
    step.y = output_of(l, y);
    if (active) step.active = dense(*active, "active");
    step_on_gpu(layers_[l], kept_.prepared[l], step);
  }
}

void Stepper::state_was_set() {
  const at::AutoDispatchBelowADInplaceOrView below;
  for (size_t l = 0; l < steps_.size(); ++l) {
    if (steps_[l].h_wide.defined()) layers_[l].h0.copy_(steps_[l].h_wide);
  }
}

void Stepper::step_on_host(const at::Tensor& x, const OptionalTensor& active, const at::Tensor& y) {
  const Inputs& first = layers_[0];
  std::vector<Index> rows;
  if (active) {
    const at::Tensor takes_part = on_host(*active, "active");
    for (Index b = 0; b < first.shape.batch; ++b) {
      if (takes_part.const_data_ptr<bool>()[b]) rows.push_back(b);
    }
    y.zero_();
    if (rows.empty()) return;
  }
  for_weights(first, [&](auto weight) { run<decltype(weight)>(x, y, active ? &rows : nullptr); });
}

template <class S>
void Stepper::run(const at::Tensor& x, const at::Tensor& y, const std::vector<Index>* rows) {
  c10::SmallVector<Layer<S>, 2> stack;
  const Index offsets[] = {0, rows ? Index(rows->size()) : 0};
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Inputs& in = layers_[l];
    // The state is written where it was read.
    Layer<S> layer = forward_layer<S>(in, {output_of(l, y), in.h0, in.c0, {}, {}}, false);
    ForwardArgs<S>& args = layer.forward[0];
    if (l == 0) args.x.data = static_cast<const Stored<S>*>(x.const_data_ptr());
    if (rows) {
      args.shape.batch = offsets[1];
      args.shape.offsets = offsets;
      for (int s = 0; s < kMaxStates; ++s) args.initial[s].places = args.final[s].places = rows->data();
      if (l == 0) args.x.places = rows->data();
      if (l + 1 == layers_.size()) args.y.places = rows->data();
    }
    stack.push_back(layer);
  }
  [[maybe_unused]] std::deque<Varied<S>> varied;
  if constexpr (kAsComputed<S>) {
    for (size_t l = 0; options_.varied && l < layers_.size(); ++l) varied.emplace_back(stack[l], layers_[l]);
  }
  kept_.packed.forward(layers_[0].cell, Stack<S>{int(stack.size()), stack.data()}, threads_allowed());
}

}  // namespace rnnfused
