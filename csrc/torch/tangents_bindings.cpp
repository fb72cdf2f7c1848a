// Layers' tangents for tests.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/utils/pybind.h>

#include "torch/tangents.h"

namespace rnnfused {

void bind_tangents(pybind11::module_& m);

namespace {

at::Tensor or_undefined(const std::optional<at::Tensor>& t) { return t ? *t : at::Tensor(); }

std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

// In the order of x, h0, c0, weights.
LayerTensors layer_tensors(const OptionalTensors& all) {
  LayerTensors out{or_undefined(all.at(0)), or_undefined(all.at(1)), or_undefined(all.at(2)), {}};
  for (size_t i = 3; i < all.size(); ++i) out.weights.push_back(or_undefined(all[i]));
  return out;
}

OutputTensors output_tensors(const OptionalTensors& all) {
  return {or_undefined(all.at(0)), or_undefined(all.at(1)), or_undefined(all.at(2))};
}

OptionalTensors list(const LayerTensors& all) {
  OptionalTensors out = {or_none(all.x), or_none(all.h0), or_none(all.c0)};
  for (const at::Tensor& w : all.weights) out.push_back(or_none(w));
  return out;
}

OptionalTensors list(const OutputTensors& all) { return {or_none(all.y), or_none(all.hn), or_none(all.cn)}; }

}  // namespace

void bind_tangents(pybind11::module_& m) {
  using Plainly = at::AutoDispatchBelowADInplaceOrView;
  using pybind11::call_guard, pybind11::gil_scoped_release;
  using MaybeTensor = std::optional<at::Tensor>;
  m.def(
      "layer_tangent",
      [](const std::string& cell, const at::Tensor& x, const at::Tensor& h0, const MaybeTensor& c0,
         const OptionalTensors& weights, const MaybeTensor& batch_sizes, const at::Tensor& y,
         const OptionalTensors& tangents) {
        const Plainly guard;
        const Inputs in(cell, x, h0, c0, weights, batch_sizes);
        return list(forward_tangent(in, y, layer_tensors(tangents)));
      },
      call_guard<gil_scoped_release>());
  m.def(
      "layer_gradient_tangent",
      [](const std::string& cell, const at::Tensor& x, const at::Tensor& h0, const MaybeTensor& c0,
         const OptionalTensors& weights, const MaybeTensor& batch_sizes, const at::Tensor& y,
         const OptionalTensors& outer, const OptionalTensors& outer_tangents, const OptionalTensors& tangents,
         const Wanted& wanted) {
        const Plainly guard;
        const Inputs in(cell, x, h0, c0, weights, batch_sizes);
        return list(gradient_tangent(in, y, output_tensors(outer), output_tensors(outer_tangents),
                                     layer_tensors(tangents), wanted));
      },
      call_guard<gil_scoped_release>());
  m.def(
      "layer_double_backward",
      [](const std::string& cell, const at::Tensor& x, const at::Tensor& h0, const MaybeTensor& c0,
         const OptionalTensors& weights, const MaybeTensor& batch_sizes, const at::Tensor& y,
         const OptionalTensors& outer, const OptionalTensors& directions, const Wanted& wanted) {
        const Plainly guard;
        const Inputs in(cell, x, h0, c0, weights, batch_sizes);
        const DoubleBackward out =
            double_backward(in, y, output_tensors(outer), layer_tensors(directions), wanted);
        return std::pair(list(out.outer), list(out.inputs));
      },
      call_guard<gil_scoped_release>());
  m.def(
      "layer_gate_gradients",
      [](const std::string& cell, const at::Tensor& x, const at::Tensor& h0, const MaybeTensor& c0,
         const OptionalTensors& weights, const MaybeTensor& batch_sizes, const at::Tensor& y,
         const OptionalTensors& outer) {
        const Plainly guard;
        const Inputs in(cell, x, h0, c0, weights, batch_sizes);
        const GateGradients all = gate_gradients(in, y, output_tensors(outer));
        std::vector<OptionalTensors> directions;
        for (const GateGradients::Direction& d : all.directions) {
          directions.push_back({or_none(d.input), or_none(d.recurrent), or_none(d.h_before),
                                or_none(d.unprojected), or_none(d.projected)});
        }
        return std::pair(directions, OptionalTensors{or_none(all.dx), or_none(all.dh0), or_none(all.dc0)});
      },
      call_guard<gil_scoped_release>());
}

}  // namespace rnnfused
