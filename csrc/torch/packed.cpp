#include "torch/packed.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <deque>

#include "torch/autograd.h"
#include "torch/backends.h"
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

}  // namespace

Frozen::Frozen(const std::string& layer, Tensors params)
    : options_(layer_options(layer)), params_(std::move(params)) {}

std::optional<Tensors> Frozen::forward(const at::Tensor& input, at::TensorList hx, const Layout& layout) {
  const Arguments arguments{options_, input, hx, params_, layout};
  // Weights of 8 bits have no derivative, and say so when somebody goes back to them.
  if (!options_.int8) {
    check_undifferentiated(options_, input, "input");
    for (const at::Tensor& state : hx) check_undifferentiated(options_, state, "hx");
  }
  if (somebody_watches(arguments)) return std::nullopt;
  const auto run = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    return recurrent(arguments, false, &packed_);
  };
  return without_gradients(arguments, run());
}

Stepper::Stepper(const std::string& layer, Tensors params, Tensors hx, at::ScalarType type)
    : options_(layer_options(layer)), type_(type) {
  const LayerOptions& o = options_;
  TORCH_CHECK_VALUE(!hx.empty() && hx[0].dim() == 3 && !params.empty(),
                    "hx: expected h [layers, batch, units]");
  const at::Tensor& h = hx[0];
  TORCH_CHECK(h.device().is_cpu(), "module: expected tensors on the CPU, got ", h.device());
  for (const at::Tensor& state : hx) TORCH_CHECK(state.is_contiguous(), "hx: expected contiguous tensors");
  const at::ScalarType stored = o.int8 ? at::kFloat : params[0].scalar_type();
  at::Tensor x = at::empty({1, h.size(1), params[0].size(-1)}, at::dtype(stored));
  const Arguments arguments{o, x, hx, params, {}};
  const Form form = check(arguments);
  check_kernels(o, x);
  TORCH_CHECK(compute_type(stored) == h.scalar_type(), "hx: expected dtype ", compute_type(stored), ", got ",
              h.scalar_type());
  TORCH_CHECK(type == stored || type == compute_type(stored), "type: expected dtype ", stored, " or ",
              compute_type(stored), ", got ", type);
  const auto sequences = std::make_shared<const Sequences>(arguments, form, /*on_device=*/false);
  at::Tensor below = x;
  layers_.reserve(size_t(o.layers));
  for (int64_t l = 0; l < o.layers; ++l) {
    layers_.emplace_back(arguments, form, sequences, l, below);
    below = at::empty(layers_.back().output_sizes(layers_.back().shape.output), x.options());
    if (l + 1 < o.layers) outputs_.push_back(below);
  }
}

at::Tensor Stepper::step(const at::Tensor& x, const OptionalTensor& active) {
  const Inputs& first = layers_[0];
  const c10::SymInt sizes[] = {first.shape.batch, first.shape.input};
  check_tensor(x, "input", first.x.device(), type_, sizes);
  check_undifferentiated(options_, x, "input");
  at::Tensor in = dense(x, "input");
  TORCH_CHECK(
      is_plain(in) && !thread_is_watched(),
      "Stepper: a step changes its state in place, which traces, transforms and modes cannot see: call "
      "the module itself");
  if (type_ != first.x.scalar_type()) in = in.to(first.x.scalar_type());
  const at::Tensor y = first.empty({first.shape.batch, layers_.back().shape.output});
  std::vector<Index> rows;
  if (active) {
    check_tensor(*active, "active", first.x.device(), at::kBool, {first.shape.batch});
    const at::Tensor takes_part = on_host(*active, "active");
    for (Index b = 0; b < first.shape.batch; ++b) {
      if (takes_part.const_data_ptr<bool>()[b]) rows.push_back(b);
    }
    y.zero_();
  }
  if (!active || !rows.empty())
    for_weights(first, [&](auto weight) { run<decltype(weight)>(in, y, active ? &rows : nullptr); });
  return y.scalar_type() == type_ ? y : y.to(type_);
}

template <class S>
void Stepper::run(const at::Tensor& x, const at::Tensor& y, const std::vector<Index>* rows) {
  const std::lock_guard<std::mutex> lock(one_at_a_time_);
  c10::SmallVector<Layer<S>, 2> stack;
  const Index offsets[] = {0, rows ? Index(rows->size()) : 0};
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Inputs& in = layers_[l];
    // The state is written where it was read.
    Layer<S> layer =
        forward_layer<S>(in, {l < outputs_.size() ? outputs_[l] : y, in.h0, in.c0, {}, {}}, false);
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
  packed_.forward(layers_[0].cell, Stack<S>{int(stack.size()), stack.data()}, threads_allowed());
}

}  // namespace rnnfused
