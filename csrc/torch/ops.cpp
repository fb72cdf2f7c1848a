#include "torch/ops.h"

#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include "torch/backends.h"
#include "torch/packed.h"

namespace rnnfused {

namespace {

std::optional<at::Tensor> if_defined(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

ForwardTensors forward(const Inputs& in, bool save, bool recompute) {
  if (in.on_gpu) return forward_on_gpu(in, save, recompute);
  ForwardTensors out = outputs_on_cpu(in, save, recompute);
  forward_on_cpu(in, out, recompute);
  return out;
}

}  // namespace

ForwardResult layer_forward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                            const std::optional<at::Tensor>& c0, const OptionalTensors& weights,
                            const std::optional<at::Tensor>& batch_sizes, bool save, bool recompute) {
  const ForwardTensors out = forward(Inputs(cell, x, h0, c0, weights, batch_sizes), save, recompute);
  return {out.y, out.hn, if_defined(out.cn), if_defined(out.tape)};
}

StackResult run_stack(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                      const std::optional<at::Tensor>& c0, c10::ArrayRef<at::Tensor> params,
                      const std::optional<at::Tensor>& batch_sizes, bool has_biases, int64_t layers,
                      bool bidirectional, bool batch_first, cpu::PackedStack* packed) {
  const StackParams of(params, h0, c0, has_biases, layers, bidirectional ? 2 : 1);
  const bool transposed = batch_first && !batch_sizes;
  at::Tensor y = transposed ? x.transpose(0, 1) : x;
  std::vector<Inputs> stack;
  std::vector<ForwardTensors> out;
  stack.reserve(size_t(layers));
  for (int64_t l = 0; l < layers; ++l) {
    stack.emplace_back(cell, y, of.state(h0, l), c0 ? std::optional(of.state(*c0, l)) : std::nullopt,
                       of.slots(l), batch_sizes);
    const Inputs& in = stack.back();
    TORCH_CHECK(!(packed && in.on_gpu), "input: expected a tensor on the CPU, got ", x.device());
    out.push_back(in.on_gpu ? forward_on_gpu(in, false, false) : outputs_on_cpu(in, false, false));
    y = out.back().y;
  }
  if (!stack[0].on_gpu) forward_on_cpu(stack, out, false, packed);

  const auto finals = [&](at::Tensor ForwardTensors::* state) {
    if (layers == 1) return out[0].*state;
    std::vector<at::Tensor> states;
    for (const ForwardTensors& of_one : out) states.push_back(of_one.*state);
    return at::cat(states);
  };
  return {transposed ? y.transpose(0, 1) : y, finals(&ForwardTensors::hn),
          c0 ? std::optional(finals(&ForwardTensors::cn)) : std::nullopt};
}

StackResult stack_forward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                          const std::optional<at::Tensor>& c0, const std::vector<at::Tensor>& params,
                          const std::optional<at::Tensor>& batch_sizes, bool has_biases, int64_t layers,
                          bool bidirectional, bool batch_first) {
  return run_stack(cell, x, h0, c0, params, batch_sizes, has_biases, layers, bidirectional, batch_first,
                   nullptr);
}

OptionalTensors layer_backward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                               const std::optional<at::Tensor>& c0, const OptionalTensors& weights,
                               const std::optional<at::Tensor>& batch_sizes, const at::Tensor& y,
                               const at::Tensor& tape, const std::optional<at::Tensor>& dy,
                               const std::optional<at::Tensor>& dhn, const std::optional<at::Tensor>& dcn,
                               const std::vector<bool>& wanted, bool recompute) {
  const Inputs in(cell, x, h0, c0, weights, batch_sizes);
  TORCH_CHECK(wanted.size() == 3 + weights.size(), "wanted: expected ", 3 + weights.size(), " entries, got ",
              wanted.size());
  TORCH_CHECK(tape.is_contiguous(), "tape: expected a contiguous tensor, got strides ", tape.strides());
  const auto given = [&](const std::optional<at::Tensor>& t, const char* name, at::IntArrayRef sizes) {
    if (!t) return at::Tensor();
    check_tensor(*t, name, in.x, sizes);
    return dense(*t);
  };
  const at::DimVector output_sizes = in.output_sizes();
  OptionalTensors gradients(wanted.size());
  const BackwardTensors tensors{given(y, "output", output_sizes),
                                tape,
                                given(dy, "grad_output", output_sizes),
                                given(dhn, "grad_h_n", in.h0.sizes()),
                                in.c0.defined() ? given(dcn, "grad_c_n", in.c0.sizes()) : at::Tensor(),
                                gradients};
  const auto want = [&](size_t i, const at::Tensor& like) {
    if (wanted[i] && like.defined()) gradients[i] = in.empty(like.sizes());
  };
  want(0, in.x), want(1, in.h0), want(2, in.c0);
  for (size_t i = 0; i < in.weights.size(); ++i) want(3 + i, in.weights[i]);
  in.on_gpu ? backward_on_gpu(in, tensors, recompute) : backward_on_cpu(in, tensors, recompute);
  return gradients;
}

std::vector<std::string> cell_names() {
  std::vector<std::string> names;
  for (const CellInfo& info : cpu::kernels().info) names.emplace_back(info.name);
  return names;
}

std::string isa() { return cpu::kernels().isa; }

std::vector<std::string> available_isas() { return cpu::available_isas(); }

std::tuple<std::string, int, int, int, int> describe_plan(const std::string& cell, int64_t steps,
                                                          int64_t batch, int64_t input, int64_t hidden,
                                                          int64_t output, int64_t layers, int64_t directions,
                                                          bool f64) {
  TORCH_CHECK_VALUE(directions == 1 || directions == 2, "directions: expected 1 or 2, got ", directions);
  const SequenceShape shape{steps, batch, input, hidden, output, nullptr, false};
  const auto make = f64 ? cpu::plan<double> : cpu::plan<float>;
  const Plan plan = make(cell_id(cell), shape, int(layers), int(directions), threads_allowed(), false);
  return {mode_of(plan), plan.groups, plan.members, plan.shards, plan.wave};
}

}  // namespace rnnfused
