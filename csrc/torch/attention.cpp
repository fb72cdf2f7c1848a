#include "torch/attention.h"

#include <ATen/ops/add.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "core/attention.h"
#include "cpu/dispatch.h"
#include "torch/backends.h"
#include "torch/memory.h"

namespace rnnfused {
namespace {

// The arguments of one call, checked, as the kernels read them.
struct Call {
  const LayerOptions& options;
  at::Tensor x;  // with the contexts
  Form form;
  Inputs in;
  at::Tensor keys, values, query, score, mask;
  at::Tensor weights, queries;

  Call(const at::Tensor& whole, const Attending& of)
      : options(checked(of.options)),
        x(whole),
        form(check(arguments(of))),
        in(arguments(of), form, std::make_shared<const Sequences>(arguments(of), form, false), 0, x) {
    const Index B = form.batch.expect_int(), S = of.attention[0].size(1), A = of.attention[2].size(0);
    const Index V = of.attention[1].size(-1);
    const auto read = [&](size_t index, const char* name, c10::SymIntArrayRef sizes) {
      const at::Tensor& t = of.attention[index];
      check_tensor(t, name, x.device(), x.scalar_type(), sizes);
      return dense(t, name);
    };
    keys = read(0, "keys", {B, S, A});
    values = read(1, "values", {B, S, V});
    query = read(2, "query", {A, form.hidden});
    score = read(3, "score", {A});
    if (of.mask) {
      check_tensor(*of.mask, "mask", x.device(), at::kBool, {B, S});
      mask = dense(*of.mask, "mask");
    }
  }

  template <class T>
  Attention<T> attention() const {
    const auto data = [](const at::Tensor& t) { return static_cast<T*>(t.data_ptr()); };
    return {keys.size(1),  keys.size(2), values.size(2),
            data(keys),    data(values), mask.defined() ? mask.const_data_ptr<bool>() : nullptr,
            data(query),   data(score),  data(x),
            data(queries), data(weights)};
  }

 private:
  static const LayerOptions& checked(const LayerOptions& o) {
    TORCH_CHECK_VALUE(
        o.layers == 1 && o.directions == 1 &&
            !(o.batch_first || o.projected || o.recompute || o.cells || o.step || o.int8 || o.varied),
        "layer: expected one layer in one direction and no other option that attends, got '", o.text, "'");
    return o;
  }
  Arguments arguments(const Attending& of) const { return {options, x, of.hx, of.params, {}}; }
};

// What has to be right before sizes can be read.
void check_dimensions(const at::Tensor& input, const Attending& of) {
  TORCH_CHECK(input.dim() == 3, "input: expected 3 dimensions, got ", input.dim());
  TORCH_CHECK(input.is_cpu(), "input: expected a tensor on the CPU, got one on ", input.device());
  TORCH_CHECK(input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble,
              "input: expected dtype torch.float32 or torch.float64, got ", input.scalar_type());
  TORCH_CHECK(of.attention.size() == 4, "attention: expected keys, values, query and score, got ",
              of.attention.size(), " tensors");
  const int64_t dims[] = {3, 3, 2, 1};
  const char* const names[] = {"keys", "values", "query", "score"};
  for (size_t i = 0; i < 4; ++i)
    TORCH_CHECK(of.attention[i].dim() == dims[i], names[i], ": expected ", dims[i], " dimensions, got ",
                of.attention[i].dim());
  TORCH_CHECK(of.hx.size() == of.options.states(), "hx: expected ", of.options.states(), " states, got ",
              of.hx.size());
}

// given: columns of the input that are no context's.
void check_context(Index given, const Attending& of) {
  if (of.params.empty() || of.params[0].dim() != 2) return;  // which the layer's own checks refuse
  const Index context = of.params[0].size(1) - given;
  TORCH_CHECK(of.attention[1].size(2) == context, "values: expected ", context,
              " features (the columns of weight_ih behind the input's ", given, "), got ",
              of.attention[1].size(2));
}

}  // namespace

Tensors attend(const at::Tensor& input, const Attending& of, bool save) {
  return within_memory([&] {
    check_dimensions(input, of);
    check_context(input.size(-1), of);
    const Index T = input.size(0), B = input.size(1), E = input.size(2), V = of.attention[1].size(2);
    at::Tensor x = at::empty({T, B, E + V}, input.options());
    x.narrow(2, 0, E).copy_(dense(input, "input"));
    Call call(x, of);
    const Inputs& in = call.in;
    call.weights = at::empty({T, B, call.keys.size(1)}, x.options());
    call.queries = at::empty({T, B, call.keys.size(2)}, x.options());
    const ForwardTensors out =
        outputs_on_cpu(in, in.empty(in.state_sizes(0)),
                       in.info.states > 1 ? in.empty(in.state_sizes(1)) : at::Tensor(), save, false);
    for_dtype(x, [&](auto type) {
      using S = decltype(type);
      if constexpr (std::is_same_v<S, Compute<S>>) {
        const Attention<S> attention = call.attention<S>();
        Layer<S> layer = forward_layer<S>(in, out, false);
        layer.forward[0].attention = &attention;
        cpu::forward(in.cell, Stack<S>{1, &layer}, threads_allowed());
      }
    });
    Tensors results{out.y, out.hn};
    if (in.info.states > 1) results.push_back(out.cn);
    for (const at::Tensor& t : {x, call.weights, call.queries}) results.push_back(t);
    if (save) results.push_back(out.tape);
    return results;
  });
}

Tensors attend_backward(at::TensorList grads, at::TensorList kept, const Attending& of) {
  return within_memory([&] {
    TORCH_CHECK(kept.size() == 5, "kept: expected 5 tensors, got ", kept.size());
    const LayerOptions& o = of.options;
    TORCH_CHECK(grads.size() == 3 + o.states(), "grads: expected ", 3 + o.states(), " entries, got ",
                grads.size());
    check_dimensions(kept[0], of);
    check_context(kept[0].size(-1) - of.attention[1].size(-1), of);
    Call call(dense(kept[0], "input"), of);
    const Inputs& in = call.in;
    const Index T = in.shape.steps, B = in.shape.batch, S = call.keys.size(1), A = call.keys.size(2);
    const Index V = call.values.size(2), E = in.shape.input - V, H = in.shape.hidden;
    const at::ScalarType type = call.x.scalar_type();
    const auto read = [&](const at::Tensor& t, const char* name, c10::SymIntArrayRef sizes) {
      if (!t.defined()) return t;
      check_tensor(t, name, call.x.device(), type, sizes);
      return dense(t, name);
    };
    call.weights = read(kept[1], "weights", {T, B, S});
    call.queries = read(kept[2], "queries", {T, B, A});
    const at::Tensor y = read(kept[3], "output", {T, B, H});
    const at::Tensor tape = read(kept[4], "tape", tape_sizes(o, call.form, call.x));
    const auto grad = [&](size_t index, const char* name, c10::SymIntArrayRef sizes) {
      return read(grads[index], name, sizes);
    };
    const size_t after = 1 + o.states();
    const at::Tensor dx = grad(after, "grad_x", {T, B, E + V});
    const at::Tensor dweights = grad(after + 1, "grad_weights", {T, B, S});
    const auto like = [](const at::Tensor& t) { return at::zeros(t.sizes(), t.options()); };
    const at::Tensor dkeys = like(call.keys), dscores = at::zeros({B, A}, call.x.options());
    const at::Tensor dqueries = at::empty_like(call.queries);
    const at::Tensor dcontexts = at::empty({T, B, V}, call.x.options());

    OptionalTensors gradients(3 + kSlots);
    gradients[0] = in.empty({T, B, E});
    for (size_t s = 0; s < of.hx.size(); ++s) gradients[1 + s] = in.empty(in.state_sizes(int(s)));
    for (size_t slot = 0; slot < kSlots; ++slot) {
      if (in.weights[slot].defined()) gradients[3 + slot] = in.empty(in.weights[slot].sizes());
    }
    const BackwardTensors tensors{y,
                                  tape,
                                  grad(0, "grad_output", {T, B, H}),
                                  grad(1, "grad_h_n", {1, B, H}),
                                  o.states() > 1 ? grad(2, "grad_c_n", {1, B, H}) : at::Tensor(),
                                  {},
                                  gradients};
    for_dtype(call.x, [&](auto scalar) {
      using N = decltype(scalar);
      if constexpr (std::is_same_v<N, Compute<N>>) {
        const auto data = [](const at::Tensor& t) {
          return t.defined() ? static_cast<N*>(t.data_ptr()) : nullptr;
        };
        const AttentionGradient<N> attention{call.attention<N>(), data(dx),       data(dweights), data(dkeys),
                                             data(dscores),       data(dqueries), data(dcontexts)};
        LayerGradient<N> layer = backward_layer<N>(in, tensors, false);
        layer.backward[0].attention = &attention;
        cpu::backward(in.cell, layer, threads_allowed());
      }
    });

    Tensors results;
    results.push_back(dx.defined() ? at::add(*gradients[0], dx.narrow(2, 0, E)) : *gradients[0]);
    for (size_t i = 1; i < gradients.size(); ++i) {
      if (gradients[i]) results.push_back(*gradients[i]);
    }
    // What is left are products over all steps: of the values with the weights, of the queries with the
    // states.
    const at::Tensor start = in.h0.defined() ? in.h0 : at::zeros({1, B, H}, call.x.options());
    const at::Tensor before = T > 0 ? at::cat({start, y.narrow(0, 0, T - 1)}) : y;
    results.push_back(dkeys);
    results.push_back(at::bmm(call.weights.permute({1, 2, 0}), dcontexts.transpose(0, 1)));
    results.push_back(at::mm(dqueries.view({T * B, A}).t(), before.reshape({T * B, H})));
    results.push_back(dscores.sum(0));
    return results;
  });
}

}  // namespace rnnfused
