#include "torch/packed.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "torch/backends.h"

namespace rnnfused {

namespace {

// Throws RuntimeError for a tensor through which a derivative is to be taken.
void check_undifferentiated(const at::Tensor& t, const char* name) {
  TORCH_CHECK(
      !(t.requires_grad() && at::GradMode::is_enabled()) && !t._fw_grad(0).defined(), name,
      ": expected a tensor that nothing differentiates, since packed layers have no derivative; got one "
      "that does (call the module itself, or detach the tensor)");
}

}  // namespace

Frozen::Frozen(std::string cell, std::vector<at::Tensor> params, bool has_biases, int64_t layers,
               bool bidirectional)
    : cell_(std::move(cell)),
      params_(std::move(params)),
      has_biases_(has_biases),
      layers_(layers),
      bidirectional_(bidirectional) {}

StackResult Frozen::forward(const at::Tensor& x, const at::Tensor& h0, const std::optional<at::Tensor>& c0,
                            const std::optional<at::Tensor>& batch_sizes, bool batch_first) {
  check_undifferentiated(x, "input");
  check_undifferentiated(h0, "h0");
  if (c0) check_undifferentiated(*c0, "c0");
  const std::lock_guard<std::mutex> lock(one_at_a_time_);
  return run_stack(cell_, x, h0, c0, params_, batch_sizes, has_biases_, layers_, bidirectional_, batch_first,
                   &packed_);
}

Stepper::Stepper(const std::string& cell, const std::vector<at::Tensor>& params, const at::Tensor& h,
                 const std::optional<at::Tensor>& c, bool has_biases) {
  const StackParams of(params, h, c, has_biases, h.dim() ? h.size(0) : 0, 1);
  TORCH_CHECK(h.device().is_cpu(), "h: expected a tensor on the CPU, got ", h.device());
  TORCH_CHECK(h.is_contiguous() && (!c || c->is_contiguous()), "state: expected contiguous tensors");
  at::Tensor x = at::empty({1, h.size(1), params[0].size(-1)}, h.options());
  layers_.reserve(size_t(of.layers));
  for (int64_t l = 0; l < of.layers; ++l) {
    layers_.emplace_back(cell, x, of.state(h, l), c ? std::optional(of.state(*c, l)) : std::nullopt,
                         of.slots(l), std::nullopt);
    x = at::empty(layers_.back().output_sizes(), h.options());
    if (l + 1 < of.layers) outputs_.push_back(x);
  }
}

at::Tensor Stepper::step(const at::Tensor& x) {
  const Inputs& first = layers_[0];
  check_tensor(x, "input", first.x, {first.shape.batch, first.shape.input});
  check_undifferentiated(x, "input");
  const at::Tensor in = dense(x);
  at::Tensor y = first.empty({first.shape.batch, first.shape.output});
  for_dtype(x, [&](auto type) { run<decltype(type)>(in, y); });
  return y;
}

template <class T>
void Stepper::run(const at::Tensor& x, const at::Tensor& y) {
  const std::lock_guard<std::mutex> lock(one_at_a_time_);
  c10::SmallVector<Layer<T>, 2> stack;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Inputs& in = layers_[l];
    // The state is written where it was read.
    Layer<T> layer = forward_layer<T>(in, {l < outputs_.size() ? outputs_[l] : y, in.h0, in.c0, {}}, false);
    if (l == 0) layer.forward[0].x.data = x.const_data_ptr<T>();
    stack.push_back(layer);
  }
  packed_.forward(layers_[0].cell, Stack<T>{int(stack.size()), stack.data()}, threads_allowed());
}

}  // namespace rnnfused
