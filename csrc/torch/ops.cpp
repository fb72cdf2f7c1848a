#include "torch/ops.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include "cpu/dispatch.h"
#include "torch/memory.h"

namespace rnnfused {
namespace {

constexpr int kSlots = 5;  // W_ih, W_hh, b_ih, b_hh, W_hr

CellId cell_id(const std::string& name) {
  const KernelTable& table = cpu::kernels();
  for (int id = 0; id < int(CellId::count); ++id) {
    if (name == table.info[id].name) return CellId(id);
  }
  TORCH_CHECK_VALUE(false, "cell: unknown cell '", name, "'");
}

int threads_allowed() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// As the kernels read it: in memory as it looks, without strides and without torch's lazy negation.
at::Tensor dense(const at::Tensor& t) { return (t.is_neg() ? t.resolve_neg() : t).contiguous(); }

void check_tensor(const at::Tensor& t, const char* name, const at::Tensor& like, at::IntArrayRef sizes) {
  TORCH_CHECK(t.device() == like.device(), name, ": expected a tensor on ", like.device(), ", got ",
              t.device());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected dtype ", like.scalar_type(), ", got ",
              t.scalar_type());
  TORCH_CHECK(t.sizes() == sizes, name, ": expected size ", sizes, ", got ", t.sizes());
}

// Everything a call hands over, checked, contiguous, and alive until the call ends.
struct Inputs {
  CellId cell;
  CellInfo info;
  int directions;
  at::Tensor x, h0, c0;
  std::vector<at::Tensor> weights;  // undefined where absent
  std::vector<Index> offsets;
  SequenceShape shape;

  Inputs(const std::string& cell_name, const at::Tensor& x_in, const at::Tensor& h0_in,
         const std::optional<at::Tensor>& c0_in, const OptionalTensors& w,
         const std::optional<at::Tensor>& batch_sizes)
      : cell(cell_id(cell_name)), info(cpu::kernels().info[int(cell)]) {
    TORCH_CHECK(x_in.device().is_cpu(),
                "input: expected a tensor on the CPU (this build has CPU kernels only), got ", x_in.device());
    TORCH_CHECK(x_in.scalar_type() == at::kFloat || x_in.scalar_type() == at::kDouble,
                "input: expected dtype float32 or float64, got ", x_in.scalar_type());
    TORCH_CHECK(x_in.dim() == (batch_sizes ? 2 : 3), "input: expected ", batch_sizes ? 2 : 3,
                " dimensions, got ", x_in.dim());
    TORCH_CHECK(w.size() == kSlots || w.size() == 2 * kSlots, "weights: expected ", kSlots, " or ",
                2 * kSlots, " entries, got ", w.size());
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
    TORCH_CHECK(c0_in.has_value() == (info.states > 1), "c0: expected ",
                info.states > 1 ? "a tensor" : "none", ", got ", c0_in ? "a tensor" : "none");
    if (c0_in) {
      check_tensor(*c0_in, "c0", x, {directions, shape.batch, shape.hidden});
      c0 = dense(*c0_in);
    }
    for (int d = 0; d < directions; ++d) add_weights(&w[size_t(d * kSlots)]);
  }

  void set_shape(const std::optional<at::Tensor>& batch_sizes, Index hidden, Index output) {
    shape = {};
    shape.hidden = hidden;
    shape.output = output;
    shape.input = x.size(-1);
    offsets = {0};
    if (batch_sizes) {
      TORCH_CHECK(batch_sizes->device().is_cpu() && batch_sizes->scalar_type() == at::kLong &&
                      batch_sizes->dim() == 1,
                  "batch_sizes: expected a one-dimensional int64 tensor on the CPU");
      const at::Tensor sizes = batch_sizes->contiguous();
      const Index* n = sizes.const_data_ptr<Index>();
      shape.steps = sizes.numel();
      TORCH_CHECK(shape.steps > 0, "batch_sizes: expected at least one step, got none");
      shape.batch = n[0];
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
      for (Index t = 1; t <= shape.steps; ++t) offsets.push_back(t * shape.batch);
    }
    shape.offsets = offsets.data();
  }

  void add_weights(const std::optional<at::Tensor>* w) {
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

  template <class T>
  Weights<T> weights_of(int direction) const {
    const auto at = [&](int slot) -> const T* {
      const at::Tensor& t = weights[size_t(direction * kSlots + slot)];
      return t.defined() ? t.const_data_ptr<T>() : nullptr;
    };
    return {at(0), at(1), at(2), at(3), at(4)};
  }

  SequenceShape shape_of(int direction) const {
    SequenceShape s = shape;
    s.reverse = direction == 1;
    return s;
  }

  // Slice of a [D, B, units] tensor.
  template <class T>
  static Rows<const T> rows_of(const at::Tensor& states, int direction) {
    if (!states.defined()) return {nullptr, 0};
    return {states.const_data_ptr<T>() + direction * states.size(1) * states.size(2), states.size(2)};
  }

  // Past the dispatcher, whose share of a call of one step shows.
  at::Tensor empty(at::IntArrayRef sizes) const {
    return at::detail::empty_generic(sizes, result_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                     x.scalar_type(), std::nullopt);
  }

  std::vector<int64_t> output_sizes() const {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = directions * shape.output;
    return sizes;
  }
};

template <class Body>
void for_dtype(const at::Tensor& x, Body body) {
  x.scalar_type() == at::kFloat ? body(float{}) : body(double{});
}

}  // namespace

ForwardResult layer_forward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                            const std::optional<at::Tensor>& c0, const OptionalTensors& weights,
                            const std::optional<at::Tensor>& batch_sizes, bool save, bool recompute) {
  const Inputs in(cell, x, h0, c0, weights, batch_sizes);
  const at::Tensor y = in.empty(in.output_sizes()), hn = in.empty(in.h0.sizes());
  const at::Tensor cn = in.c0.defined() ? in.empty(in.c0.sizes()) : at::Tensor();
  at::Tensor tape;
  for_dtype(in.x, [&](auto type) {
    using T = decltype(type);
    const Index tape_size = cpu::tape_scalars<T>(in.cell, in.shape, recompute);
    if (save) tape = in.empty({in.directions, tape_size});
    Layer<T> layer{};
    layer.directions = in.directions;
    for (int d = 0; d < in.directions; ++d) {
      ForwardArgs<T>& args = layer.forward[d];
      args.shape = in.shape_of(d);
      args.weights = in.weights_of<T>(d);
      args.x = {in.x.const_data_ptr<T>(), in.shape.input};
      args.initial[0] = Inputs::rows_of<T>(in.h0, d);
      args.initial[1] = Inputs::rows_of<T>(in.c0, d);
      args.y = {y.mutable_data_ptr<T>() + d * in.shape.output, in.directions * in.shape.output};
      args.final[0] = {hn.mutable_data_ptr<T>() + d * in.shape.batch * in.shape.output, in.shape.output};
      if (cn.defined()) {
        args.final[1] = {cn.mutable_data_ptr<T>() + d * in.shape.batch * in.shape.hidden, in.shape.hidden};
      }
      args.tape = save ? tape.mutable_data_ptr<T>() + d * tape_size : nullptr;
      args.recompute = recompute;
    }
    cpu::forward(in.cell, layer, threads_allowed());
  });
  const auto maybe = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
  return {y, hn, maybe(cn), maybe(tape)};
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
  const auto given = [&](const std::optional<at::Tensor>& t, const char* name, at::IntArrayRef sizes) {
    if (!t) return at::Tensor();
    check_tensor(*t, name, in.x, sizes);
    return dense(*t);
  };
  const std::vector<int64_t> output_sizes = in.output_sizes();
  const at::Tensor y_rows = given(y, "output", output_sizes);
  const at::Tensor dy_rows = given(dy, "grad_output", output_sizes);
  const at::Tensor dh = given(dhn, "grad_h_n", in.h0.sizes());
  const at::Tensor dc = in.c0.defined() ? given(dcn, "grad_c_n", in.c0.sizes()) : at::Tensor();

  OptionalTensors gradients(wanted.size());
  const auto want = [&](size_t i, const at::Tensor& like) {
    if (wanted[i] && like.defined()) gradients[i] = in.empty(like.sizes());
  };
  want(0, in.x), want(1, in.h0), want(2, in.c0);
  for (size_t i = 0; i < in.weights.size(); ++i) want(3 + i, in.weights[i]);

  for_dtype(in.x, [&](auto type) {
    using T = decltype(type);
    const auto data = [&](size_t i) -> T* {
      return gradients[i] ? gradients[i]->mutable_data_ptr<T>() : nullptr;
    };
    const Index tape_size = cpu::tape_scalars<T>(in.cell, in.shape, recompute);
    check_tensor(tape, "tape", in.x, {in.directions, tape_size});
    TORCH_CHECK(tape.is_contiguous(), "tape: expected a contiguous tensor, got strides ", tape.strides());
    LayerGradient<T> layer{};
    layer.directions = in.directions;
    for (int d = 0; d < in.directions; ++d) {
      BackwardArgs<T>& args = layer.backward[d];
      const Index stride = in.directions * in.shape.output;
      args.shape = in.shape_of(d);
      args.weights = in.weights_of<T>(d);
      args.x = {in.x.const_data_ptr<T>(), in.shape.input};
      args.initial[0] = Inputs::rows_of<T>(in.h0, d);
      args.initial[1] = Inputs::rows_of<T>(in.c0, d);
      args.y = {y_rows.const_data_ptr<T>() + d * in.shape.output, stride};
      args.tape = tape.const_data_ptr<T>() + d * tape_size;
      args.recompute = recompute;
      if (dy_rows.defined()) args.dy = {dy_rows.const_data_ptr<T>() + d * in.shape.output, stride};
      args.dfinal[0] = Inputs::rows_of<T>(dh, d);
      args.dfinal[1] = Inputs::rows_of<T>(dc, d);
      args.dx = {data(0), in.shape.input};
      args.accumulate_dx = d > 0;
      args.dinitial[0] = data(1) ? data(1) + d * in.shape.batch * in.shape.output : nullptr;
      args.dinitial[1] = data(2) ? data(2) + d * in.shape.batch * in.shape.hidden : nullptr;
      T** const slots[kSlots] = {&args.dinput, &args.drecurrent, &args.dinput_bias, &args.dbias,
                                 &args.dprojection};
      for (int slot = 0; slot < kSlots; ++slot) *slots[slot] = data(size_t(3 + d * kSlots + slot));
    }
    cpu::backward(in.cell, layer, threads_allowed());
  });
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
