#include "torch/inputs.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "torch/gpu.h"
#include "torch/memory.h"

namespace rnnfused {

Steps::Steps(const Arguments& a, const Form& form) {
  if (!form.packed) {
    steps = form.steps.expect_int();
    batch = form.batch.expect_int();
    offsets.reserve(size_t(steps) + 1);
    for (Index t = 0; t <= steps; ++t) offsets.push_back(t * batch);
    return;
  }
  TORCH_CHECK(a.batch_sizes->device().is_cpu(),
              "batch_sizes: expected a one-dimensional int64 tensor on the CPU");
  check_memory(*a.batch_sizes, "batch_sizes");
  const at::Tensor sizes = a.batch_sizes->contiguous();
  const Index* n = sizes.const_data_ptr<Index>();
  steps = sizes.numel();
  TORCH_CHECK(steps > 0, "batch_sizes: expected at least one step, got none");
  batch = n[0];
  offsets.reserve(size_t(steps) + 1);
  offsets.push_back(0);
  for (Index t = 0; t < steps; ++t) {
    TORCH_CHECK(n[t] >= 0 && n[t] <= (t ? n[t - 1] : n[t]),
                "batch_sizes: expected sizes that never grow, got ", n[t], " after ", t ? n[t - 1] : 0);
    offsets.push_back(offsets.back() + n[t]);
  }
  TORCH_CHECK(offsets.back() == a.input.size(0), "batch_sizes: expected a sum of ", a.input.size(0),
              " (the rows of input), got ", offsets.back());
  if (a.hx.empty() || form.batch == batch) return;
  const c10::SymInt expected[] = {a.options.layers * a.options.directions, batch, form.output};
  refuse_state(a.options, 0, expected, a.hx[0].sym_sizes());
}

at::Tensor dense(const at::Tensor& t, const char* name, bool on_gpu) {
  check_memory(t, name);
  const at::Tensor plain = (t.is_neg() ? t.resolve_neg() : t).contiguous();
  const at::ScalarType type = plain.scalar_type();
  return on_gpu || compute_type(type) == type ? plain : plain.to(compute_type(type));
}

Inputs::Inputs(const Arguments& a, const Form& form, const Steps& steps, int64_t index,
               const at::Tensor& input)
    : cell(a.options.cell),
      info(a.options.info),
      on_gpu(gpu::serves(a.input.device())),
      directions(a.options.directions),
      offsets(steps.offsets) {
  shape = {};
  shape.steps = steps.steps;
  shape.batch = steps.batch;
  shape.input = index ? directions * form.output : form.input;
  shape.hidden = form.hidden;
  shape.output = form.output;
  shape.offsets = offsets.data();
  x = dense(input, "input", on_gpu);
  const auto state = [&](int s, const char* name) {
    if (a.hx.empty()) return on_gpu ? at::zeros(state_sizes(s), x.options()) : at::Tensor();
    const at::Tensor& all = a.hx[size_t(s)];
    const bool whole = a.options.layers == 1;
    return dense(whole ? all : all.narrow(0, index * directions, directions), name, on_gpu);
  };
  h0 = state(0, "h0");
  if (info.states > 1) c0 = state(1, "c0");
  weights.reserve(size_t(directions * kSlots));
  auto next = a.params.begin() + ptrdiff_t(a.options.params_each()) * index * directions;
  const auto take = [&](const char* name, bool present) {
    present ? weights.push_back(dense(*next++, name, on_gpu)) : void(weights.emplace_back());
  };
  for (int d = 0; d < directions; ++d) {
    take("weight_ih", true), take("weight_hh", true);
    take("bias_ih", a.options.biases), take("bias_hh", a.options.biases);
    take("weight_hr", a.options.projected);
  }
}

at::Tensor Inputs::empty(at::IntArrayRef sizes) const {
  if (on_gpu) return at::empty(sizes, x.options());
  // Past the dispatcher, whose share of a call of one step shows.
  at::Tensor result = at::detail::empty_generic(
      sizes, result_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU), x.scalar_type(), std::nullopt);
  // As at::empty does, so that a number that was never written shows; by this thread, since a forked process
  // has no other.
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
    const auto fill = [&](auto* data) { std::fill_n(data, result.numel(), NAN); };
    result.scalar_type() == at::kDouble ? fill(result.mutable_data_ptr<double>())
                                        : fill(result.mutable_data_ptr<float>());
  }
  return result;
}

at::DimVector Inputs::output_sizes() const {
  at::DimVector sizes(x.sizes());
  sizes.back() = directions * shape.output;
  return sizes;
}

at::DimVector Inputs::state_sizes(int state) const {
  return {directions, shape.batch, state == 0 ? shape.output : shape.hidden};
}

}  // namespace rnnfused
