#include "torch/ops.h"

#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include "cpu/dispatch.h"
#include "torch/backends.h"
#include "torch/gpu.h"

namespace rnnfused {

ForwardResult layer_forward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                            const std::optional<at::Tensor>& c0, const OptionalTensors& weights,
                            const std::optional<at::Tensor>& batch_sizes, bool save, bool recompute) {
  const Inputs in(cell, x, h0, c0, weights, batch_sizes);
  const auto maybe = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
  const ForwardTensors out =
      in.on_gpu ? forward_on_gpu(in, save, recompute) : forward_on_cpu(in, save, recompute);
  return {out.y, out.hn, maybe(out.cn), maybe(out.tape)};
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
  const std::vector<int64_t> output_sizes = in.output_sizes();
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

std::tuple<int, int, int> describe_plan(const std::string& cell, int64_t steps, int64_t batch, int64_t input,
                                        int64_t hidden, int64_t output, int64_t directions, bool f64) {
  TORCH_CHECK_VALUE(directions == 1 || directions == 2, "directions: expected 1 or 2, got ", directions);
  const SequenceShape shape{steps, batch, input, hidden, output, nullptr, false};
  const auto make = f64 ? cpu::plan<double> : cpu::plan<float>;
  const Plan plan = make(cell_id(cell), shape, int(directions), threads_allowed(), false);
  return {plan.groups, plan.members, plan.shards};
}

}  // namespace rnnfused
