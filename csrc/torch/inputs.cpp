#include "torch/inputs.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "cpu/dispatch.h"
#include "torch/gpu.h"
#include "torch/memory.h"

namespace rnnfused {

CellId cell_id(const std::string& name) {
  const KernelTable& table = cpu::kernels();
  for (int id = 0; id < int(CellId::count); ++id) {
    if (name == table.info[id].name) return CellId(id);
  }
  TORCH_CHECK_VALUE(false, "cell: unknown cell '", name, "'");
}

at::Tensor dense(const at::Tensor& t) { return (t.is_neg() ? t.resolve_neg() : t).contiguous(); }

void check_tensor(const at::Tensor& t, const char* name, const at::Tensor& like, at::IntArrayRef sizes) {
  TORCH_CHECK(t.device() == like.device(), name, ": expected a tensor on ", like.device(), ", got ",
              t.device());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected dtype ", like.scalar_type(), ", got ",
              t.scalar_type());
  TORCH_CHECK(t.sizes() == sizes, name, ": expected size ", sizes, ", got ", t.sizes());
}

void check_input(const at::Tensor& x) {
  const bool on_gpu = gpu::serves(x.device());
  TORCH_CHECK(x.device().is_cpu() || on_gpu, "input: expected a tensor on ", gpu::places(), ", got ",
              x.device());
  const at::ScalarType type = x.scalar_type();
  const bool narrow = type == at::kHalf || type == at::kBFloat16;
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || (narrow && on_gpu),
              "input: expected dtype float32 or float64", on_gpu ? ", float16 or bfloat16" : "", ", got ",
              type);
}

StackParams::StackParams(c10::ArrayRef<at::Tensor> all, const at::Tensor& h0,
                         const std::optional<at::Tensor>& c0, bool biases, int64_t layer_count,
                         int64_t direction_count)
    : params(all), layers(layer_count), directions(direction_count), has_biases(biases), projected(false) {
  const auto check_state = [&](const at::Tensor& state, const char* name) {
    TORCH_CHECK(state.dim() == 3 && state.size(0) == layers * directions, name, ": expected size [",
                layers * directions, ", batch, units], got ", state.sizes());
  };
  check_state(h0, "h0");
  if (c0) check_state(*c0, "c0");
  projected = c0 && h0.size(2) != c0->size(2);
  TORCH_CHECK_VALUE(layers > 0 && params.size() == of_layer() * size_t(layers), "params: expected ",
                    of_layer() * size_t(layers), " tensors, got ", params.size());
}

at::Tensor StackParams::state(const at::Tensor& states, int64_t layer) const {
  return layers == 1 ? states : states.narrow(0, layer * directions, directions);
}

OptionalTensors StackParams::slots(int64_t layer) const {
  OptionalTensors slots(size_t(directions * kSlots));
  auto next = params.begin() + ptrdiff_t(size_t(layer) * of_layer());
  for (auto slot = slots.begin(); slot != slots.end(); slot += kSlots) {
    slot[0] = *next++, slot[1] = *next++;
    if (has_biases) slot[2] = *next++, slot[3] = *next++;
    if (projected) slot[4] = *next++;
  }
  return slots;
}

Inputs::Inputs(const std::string& cell_name, const at::Tensor& x_in, const at::Tensor& h0_in,
               const std::optional<at::Tensor>& c0_in, const OptionalTensors& w,
               const std::optional<at::Tensor>& batch_sizes)
    : cell(cell_id(cell_name)), info(cpu::kernels().info[int(cell)]), on_gpu(gpu::serves(x_in.device())) {
  check_input(x_in);
  TORCH_CHECK(x_in.dim() == (batch_sizes ? 2 : 3), "input: expected ", batch_sizes ? 2 : 3,
              " dimensions, got ", x_in.dim());
  TORCH_CHECK(w.size() == kSlots || w.size() == 2 * kSlots, "weights: expected ", kSlots, " or ", 2 * kSlots,
              " entries, got ", w.size());
  directions = int(w.size()) / kSlots;
  TORCH_CHECK(h0_in.dim() == 3, "h0: expected 3 dimensions, got ", h0_in.dim());
  TORCH_CHECK(w[0] && w[0]->dim() == 2 && w[0]->size(0) % info.gates == 0, "weight_ih: expected [",
              info.gates, " * hidden_size, input_size]");
  x = dense(x_in);
  set_shape(batch_sizes, w[0]->size(0) / info.gates, h0_in.size(2));

  TORCH_CHECK(shape.output <= shape.hidden, "h0: expected at most hidden_size (", shape.hidden,
              ") units, got ", shape.output);
  check_tensor(h0_in, "h0", x, {directions, shape.batch, shape.output});
  h0 = dense(h0_in);
  TORCH_CHECK(c0_in.has_value() == (info.states > 1), "c0: expected ", info.states > 1 ? "a tensor" : "none",
              ", got ", c0_in ? "a tensor" : "none");
  if (c0_in) {
    check_tensor(*c0_in, "c0", x, {directions, shape.batch, shape.hidden});
    c0 = dense(*c0_in);
  }
  weights.reserve(w.size());
  for (int d = 0; d < directions; ++d) add_weights(&w[size_t(d * kSlots)]);
}

void Inputs::set_shape(const std::optional<at::Tensor>& batch_sizes, Index hidden, Index output) {
  shape = {};
  shape.hidden = hidden;
  shape.output = output;
  shape.input = x.size(-1);
  if (batch_sizes) {
    TORCH_CHECK(
        batch_sizes->device().is_cpu() && batch_sizes->scalar_type() == at::kLong && batch_sizes->dim() == 1,
        "batch_sizes: expected a one-dimensional int64 tensor on the CPU");
    const at::Tensor sizes = batch_sizes->contiguous();
    const Index* n = sizes.const_data_ptr<Index>();
    shape.steps = sizes.numel();
    TORCH_CHECK(shape.steps > 0, "batch_sizes: expected at least one step, got none");
    shape.batch = n[0];
    offsets.reserve(size_t(shape.steps) + 1);
    offsets.push_back(0);
    for (Index t = 0; t < shape.steps; ++t) {
      TORCH_CHECK(n[t] >= 0 && n[t] <= (t ? n[t - 1] : n[t]),
                  "batch_sizes: expected sizes that never grow, got ", n[t], " after ", t ? n[t - 1] : 0);
      offsets.push_back(offsets.back() + n[t]);
    }
    TORCH_CHECK(offsets.back() == x.size(0), "batch_sizes: expected a sum of ", x.size(0),
                " (the rows of input), got ", offsets.back());
  } else {
    shape.steps = x.size(0);
    TORCH_CHECK(shape.steps > 0, "Expected sequence length to be larger than 0 in RNN");
    shape.batch = x.size(1);
    offsets.reserve(size_t(shape.steps) + 1);
    for (Index t = 0; t <= shape.steps; ++t) offsets.push_back(t * shape.batch);
  }
  shape.offsets = offsets.data();
}

void Inputs::add_weights(const std::optional<at::Tensor>* w) {
  const Index gates = info.gates * shape.hidden;
  const auto add = [&](int slot, const char* name, at::IntArrayRef sizes, bool required) {
    TORCH_CHECK(w[slot] || !required, name, ": expected a tensor of size ", sizes, ", got none");
    if (!w[slot]) return weights.emplace_back(), void();
    check_tensor(*w[slot], name, x, sizes);
    weights.push_back(dense(*w[slot]));
  };
  add(0, "weight_ih", {gates, shape.input}, true);
  add(1, "weight_hh", {gates, shape.output}, true);
  add(2, "bias_ih", {gates}, false);
  add(3, "bias_hh", {gates}, false);
  TORCH_CHECK(!w[4] || shape.projected(), "weight_hr: expected none, since h0 has hidden_size (",
              shape.hidden, ") units: a projection is smaller than that");
  add(4, "weight_hr", {shape.output, shape.hidden}, shape.projected());
}

at::Tensor Inputs::empty(at::IntArrayRef sizes) const {
  if (on_gpu) return at::empty(sizes, x.options());
  // Past the dispatcher, whose share of a call of one step shows.
  return at::detail::empty_generic(sizes, result_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   x.scalar_type(), std::nullopt);
}

at::DimVector Inputs::output_sizes() const {
  at::DimVector sizes(x.sizes());
  sizes.back() = directions * shape.output;
  return sizes;
}

}  // namespace rnnfused
