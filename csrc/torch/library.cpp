// The operators as torch's dispatcher knows them: schemas, kernels, and what they are on tensors without
// memory and under autocast. Batching and decompositions are in Python (rnnfused/_batching.py,
// _decomposed.py), where alone transforms are.
#include <ATen/LegacyBatchedTensorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>

#include "torch/attention.h"
#include "torch/autograd.h"

namespace rnnfused {
namespace {

Arguments arguments(const at::Tensor& input, at::TensorList hx, at::TensorList params, const Layout& layout,
                    std::string_view layer) {
  return {layer_options(layer), input, hx, params, layout};
}

// What is not there, or is a zero that torch has not written out, is undefined: the kernels take it for
// zeros.
Tensors given(const OptionalList& list) {
  Tensors tensors;
  for (const std::optional<at::Tensor>& t : list)
    tensors.push_back(t && t->defined() && !t->_is_zerotensor() ? *t : at::Tensor());
  return tensors;
}

Tensors recurrent_kernel(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& resets, std::string_view layer, bool save) {
  return recurrent(arguments(input, hx, params, {batch_sizes, lengths, resets}, layer), save);
}

Tensors backward_kernel(const OptionalList& grads, const at::Tensor& input, at::TensorList hx,
                        at::TensorList params, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& resets, const at::Tensor& output,
                        const at::Tensor& tape, std::string_view layer, at::IntArrayRef wanted) {
  return recurrent_backward(arguments(input, hx, params, {batch_sizes, lengths, resets}, layer), given(grads),
                            {output, tape}, wanted);
}

Tensors tangent_kernel(const OptionalList& tangents, const OptionalList& grads,
                       const OptionalList& grad_tangents, const at::Tensor& input, at::TensorList hx,
                       at::TensorList params, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& resets, const at::Tensor& output,
                       std::string_view layer, bool outputs, at::IntArrayRef wanted,
                       const OptionalTensor& tape) {
  const Tensors along = given(tangents), outer = given(grads), outer_tangents = given(grad_tangents);
  return recurrent_tangent(arguments(input, hx, params, {batch_sizes, lengths, resets}, layer),
                           {along, outer, outer_tangents}, {output, tape.value_or(at::Tensor())}, outputs,
                           wanted);
}

Tensors gate_gradients_kernel(const OptionalList& grads, const at::Tensor& input, at::TensorList hx,
                              at::TensorList params, const OptionalTensor& batch_sizes,
                              const OptionalTensor& lengths, const OptionalTensor& resets,
                              const at::Tensor& output, std::string_view layer) {
  return recurrent_gate_gradients(arguments(input, hx, params, {batch_sizes, lengths, resets}, layer),
                                  given(grads), output);
}

// ---- Tensors without memory: sizes alone

// The arguments of such a call: one tensor without memory among others that have it decides nothing.
Arguments bare_arguments(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                         const Layout& layout, std::string_view layer) {
  TORCH_CHECK(input.device().is_meta(),
              "Expected all tensors to be on the same device, but found at least two devices, meta and ",
              input.device());
  return arguments(input, hx, params, layout, layer);
}

// Laid out as the kernels lay out a sequence.
at::Tensor empty_sequence(const LayerOptions& o, const Form& form, c10::SymDimVector sizes,
                          const at::TensorOptions& options) {
  if (!o.batch_first || !form.padded() || !form.batched || form.masked)
    return at::empty_symint(sizes, options);
  std::swap(sizes[0], sizes[1]);
  return at::empty_symint(sizes, options).transpose(0, 1);
}

Tensors recurrent_meta(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& resets, std::string_view layer, bool save) {
  const Arguments a = bare_arguments(input, hx, params, {batch_sizes, lengths, resets}, layer);
  const Form form = check(a);
  check_kernels(a.options, input);
  TORCH_CHECK_VALUE(!save || a.options.layers == 1, "save: expected one layer, got ", a.options.layers);
  if (save) check_gradients(a.options);
  TORCH_CHECK(
      !batch_sizes || !hx.empty(),
      "hx: expected initial states with packed rows, since batch_sizes, which tells the batch, has no "
      "memory here");
  const at::TensorOptions options = input.options().dtype(state_type(a));
  Tensors results;
  for (c10::SymDimVector& sizes : output_sizes(a, form)) {
    results.push_back(a.options.is_sequence(results.size())
                          ? empty_sequence(a.options, form, std::move(sizes), options)
                          : at::empty_symint(sizes, options));
  }
  if (save) {
    results.push_back(
        at::empty_symint(tape_sizes(a.options, form, input), input.options().dtype(tape_type(input))));
  }
  return results;
}

Tensors backward_meta(const OptionalList&, const at::Tensor& input, at::TensorList hx, at::TensorList params,
                      const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                      const OptionalTensor& resets, const at::Tensor&, const at::Tensor&,
                      std::string_view layer, at::IntArrayRef wanted) {
  const Arguments a = bare_arguments(input, hx, params, {batch_sizes, lengths, resets}, layer);
  const Form form = check(a);
  check_kernels(a.options, input);
  check_gradients(a.options);
  Tensors results;
  for (const int64_t index : wanted) {
    TORCH_CHECK(index >= 0 && size_t(index) < 1 + hx.size() + params.size(),
                "wanted: expected indices below ", 1 + hx.size() + params.size(), ", got ", index);
    if (index == 0) {
      results.push_back(
          empty_sequence(a.options, form, c10::SymDimVector(input.sym_sizes()), input.options()));
      continue;
    }
    const size_t place = size_t(index) - 1;
    const at::Tensor& like = place < hx.size() ? hx[place] : params[place - hx.size()];
    results.push_back(at::empty_symint(like.sym_sizes(), like.options()));
  }
  return results;
}

Tensors tangent_meta(const OptionalList&, const OptionalList&, const OptionalList&, const at::Tensor& input,
                     at::TensorList hx, at::TensorList params, const OptionalTensor& batch_sizes,
                     const OptionalTensor& lengths, const OptionalTensor& resets, const at::Tensor& output,
                     std::string_view layer, bool outputs, at::IntArrayRef wanted, const OptionalTensor&) {
  Tensors results;
  if (outputs) results = recurrent_meta(input, hx, params, batch_sizes, lengths, resets, layer, false);
  for (at::Tensor& t : backward_meta(OptionalList(), input, hx, params, batch_sizes, lengths, resets, output,
                                     output, layer, wanted))
    results.push_back(std::move(t));
  return results;
}

Tensors gate_gradients_meta(const OptionalList&, const at::Tensor& input, at::TensorList hx,
                            at::TensorList params, const OptionalTensor& batch_sizes,
                            const OptionalTensor& lengths, const OptionalTensor& resets, const at::Tensor&,
                            std::string_view layer) {
  const Arguments a = bare_arguments(input, hx, params, {batch_sizes, lengths, resets}, layer);
  const Form form = check(a);
  check_gradients(a.options);
  Tensors results;
  const auto give = [&](Index columns) {
    results.push_back(at::empty_symint({form.rows, columns}, input.options()));
  };
  for (int d = 0; d < a.options.directions; ++d) {
    const Index gates = a.options.info.gates * form.hidden;
    give(gates), give(gates), give(form.output);
    if (a.options.projected) give(form.hidden), give(form.output);
  }
  return results;
}

// ---- Many gradients or tangents at once (is_grads_batched and its like): torch has batches of its own for
// them

// A slice along the innermost of a tensor's batch dimensions, if that is of the level.
at::Tensor slice_of(const at::Tensor& t, int64_t level, int64_t index) {
  const at::BatchedTensorImpl* batched = t.defined() ? at::maybeGetBatchedImpl(t) : nullptr;
  if (!batched || batched->bdims().back().level() != level) return t;
  const int64_t dim = batched->bdims().back().dim();
  at::BatchDims others;
  for (const at::BatchDim& other : batched->bdims().slice(0, batched->bdims().size() - 1))
    others.emplace_back(other.level(), other.dim() - (other.dim() > dim ? 1 : 0));
  const at::Tensor slice = batched->value().select(dim, index);
  return others.empty() ? slice : at::makeBatched(slice, others);
}

// Calls body with every tensor of the arguments, those of lists too.
template <class Body>
void for_tensors(const torch::jit::Stack& arguments, Body body) {
  for (const c10::IValue& value : arguments) {
    if (value.isTensor()) body(value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& t : value.toTensorVector()) body(t);
    }
    if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
        body(t.value_or(at::Tensor()));
    }
  }
}

c10::IValue slice_of(const c10::IValue& value, int64_t level, int64_t index) {
  if (value.isTensor()) return slice_of(value.toTensor(), level, index);
  if (value.isTensorList()) {
    Tensors slices;
    for (const at::Tensor& t : value.toTensorVector()) slices.push_back(slice_of(t, level, index));
    return slices;
  }
  if (value.isOptionalTensorList()) {
    OptionalList slices;
    for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
      slices.push_back(t ? std::optional(slice_of(*t, level, index)) : std::nullopt);
    return slices;
  }
  return value;
}

// One call for each.
void one_by_one(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const torch::jit::Stack arguments = torch::jit::pop(*stack, op.schema().arguments().size());
  int64_t level = -1, size = 0;
  for_tensors(arguments, [&](const at::Tensor& t) {
    const at::BatchedTensorImpl* batched = t.defined() ? at::maybeGetBatchedImpl(t) : nullptr;
    if (!batched || batched->bdims().back().level() <= level) return;
    level = batched->bdims().back().level();
    size = batched->value().size(batched->bdims().back().dim());
  });
  std::vector<Tensors> stacks;
  for (int64_t i = 0; i < size; ++i) {
    torch::jit::Stack own;
    for (const c10::IValue& value : arguments) own.push_back(slice_of(value, level, i));
    op.callBoxed(own);
    const Tensors one = own.at(0).toTensorVector();
    stacks.resize(one.size());
    for (size_t k = 0; k < one.size(); ++k) stacks[k].push_back(one[k]);
  }
  Tensors results;
  for (const Tensors& parts : stacks) results.push_back(at::addBatchDim(at::stack(parts), level, 0));
  stack->emplace_back(std::move(results));
}

// ---- Autocast

Tensors cast(at::ScalarType type, at::TensorList tensors, c10::DeviceType device) {
  Tensors results;
  for (const at::Tensor& t : tensors) results.push_back(at::autocast::cached_cast(type, t, device));
  return results;
}

// As torch's own layers do: everything is cast. On the CPU a GRU, all cells but the vanilla one, and an LSTM
// that is packed or projected add to their states in the states' own type, in which they return them.
template <c10::DeviceType device>
Tensors recurrent_autocast(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           const OptionalTensor& resets, std::string_view layer, bool save) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  const LayerOptions& o = layer_options(layer);
  if (o.int8) {  // everything beside its matrices is float32
    return call_recurrent(at::autocast::cached_cast(at::kFloat, input, device), cast(at::kFloat, hx, device),
                          params, {batch_sizes, lengths, resets}, layer, save);
  }
  if (o.varied) {
    return call_recurrent(at::autocast::cached_cast(at::kFloat, input, device), cast(at::kFloat, hx, device),
                          cast(at::kFloat, params, device), {batch_sizes, lengths, resets}, layer, save);
  }
  const bool is_fused = o.step ? o.kind == "RNNCell" : o.kind != "GRU" && !o.projected && !batch_sizes;
  const at::ScalarType before = hx.empty() ? input.scalar_type() : hx[0].scalar_type();
  const bool wide = device == c10::kCPU && !(is_fused || (o.kind == "RNN")) && before == at::kFloat &&
                    compute_type(type) == at::kFloat;
  Tensors results = call_recurrent(at::autocast::cached_cast(type, input, device),
                                   cast(wide ? at::kFloat : type, hx, device), cast(type, params, device),
                                   {batch_sizes, lengths, resets}, layer, save);
  if (!wide) return results;
  for (size_t i = 0; i < o.outputs(); ++i) {
    // What comes from a product, as a projected h, is cast.
    results[i] = results[i].to(o.projected && i < 2 ? type : at::kFloat);
  }
  return results;
}

// Derivatives run in the types of forward.
void uncast(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  op.callBoxed(*stack);
}

void add_uncast(torch::Library& m) {
  for (const char* name : {"recurrent_backward", "recurrent_tangent", "recurrent_gate_gradients",
                           "recurrent_tangent_decomposed", "recurrent_tangent_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&uncast>());
}

}  // namespace

// What the arguments are: torch/arguments.h; `layer`: torch/options.h. recurrent returns the output (none of
// a step), the final states and with `save` the tape. recurrent_backward returns the gradients `wanted`.
// recurrent_tangent differentiates both in a direction: `tangents` are those of input, hx and params (in this
// order), `grads` what backward is given, `grad_tangents` its tangents; it returns, if `outputs`, the
// tangents of what recurrent returns, and then those of the gradients `wanted`; recurrent's `tape`, where it
// is given, spares it work. By the symmetry of second
// derivatives it is what backward's own backward computes, too.
TORCH_LIBRARY(rnnfused, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  const std::string of_layer =
      "Tensor input, Tensor[] hx, Tensor[] params, Tensor? batch_sizes, Tensor? lengths, Tensor? resets";
  const std::string along = "Tensor?[] tangents, Tensor?[] grads, Tensor?[] grad_tangents, ";
  const std::string of_tangent = along + of_layer + ", Tensor output, str layer, bool outputs, int[] wanted";
  const auto define = [&](const std::string& name, const std::string& arguments) {
    m.def(torch::schema((name + "(" + arguments + ") -> Tensor[]").c_str()), tags);
  };
  define("recurrent", of_layer + ", str layer, bool save");
  define("recurrent_backward",
         "Tensor?[] grads, " + of_layer + ", Tensor output, Tensor tape, str layer, int[] wanted");
  define("recurrent_tangent", of_tangent + ", Tensor? tape=None");
  // The same in torch's operations, and its derivatives: rnnfused/_ops.py.
  define("recurrent_tangent_decomposed", of_tangent);
  define("recurrent_tangent_backward", "Tensor?[] outer, " + of_tangent + ", int[] needed");
  define("recurrent_gate_gradients", "Tensor?[] grads, " + of_layer + ", Tensor output, str layer");
  // A layer that attends while it runs: torch/attention.h; what is there of it for other keys is in
  // rnnfused/_attend.py.
  const std::string of_attention =
      "Tensor[] hx, Tensor[] params, Tensor[] attention, Tensor? mask, str layer";
  define("attend", "Tensor input, " + of_attention + ", bool save");
  define("attend_backward", "Tensor?[] grads, Tensor[] kept, " + of_attention);
}

Tensors attend_kernel(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                      at::TensorList attention, const OptionalTensor& mask, std::string_view layer,
                      bool save) {
  return attend(input, {layer_options(layer), hx, params, attention, mask}, save);
}

Tensors attend_backward_kernel(const OptionalList& grads, at::TensorList kept, at::TensorList hx,
                               at::TensorList params, at::TensorList attention, const OptionalTensor& mask,
                               std::string_view layer) {
  return attend_backward(given(grads), kept, {layer_options(layer), hx, params, attention, mask});
}

// Everything but derivatives of third order, which only Python has (rnnfused/_ops.py).
void add_kernels(torch::Library& m) {
  m.impl("recurrent", &recurrent_kernel);
  m.impl("recurrent_backward", &backward_kernel);
  m.impl("recurrent_tangent", &tangent_kernel);
  m.impl("recurrent_gate_gradients", &gate_gradients_kernel);
}

TORCH_LIBRARY_IMPL(rnnfused, CPU, m) {
  add_kernels(m);
  m.impl("attend", &attend_kernel);
  m.impl("attend_backward", &attend_backward_kernel);
}

TORCH_LIBRARY_IMPL(rnnfused, CUDA, m) { add_kernels(m); }

TORCH_LIBRARY_IMPL(rnnfused, Meta, m) {
  m.impl("recurrent", &recurrent_meta);
  m.impl("recurrent_backward", &backward_meta);
  m.impl("recurrent_tangent", &tangent_meta);
  m.impl("recurrent_gate_gradients", &gate_gradients_meta);
}

TORCH_LIBRARY_IMPL(rnnfused, Batched, m) {
  for (const char* name :
       {"recurrent", "recurrent_backward", "recurrent_tangent", "recurrent_gate_gradients"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&one_by_one>());
}

TORCH_LIBRARY_IMPL(rnnfused, Autograd, m) {
  m.impl("recurrent", &recurrent_autograd);
  m.impl("recurrent_backward", &backward_autograd);
  m.impl("recurrent_tangent", &tangent_autograd);
}

TORCH_LIBRARY_IMPL(rnnfused, AutocastCPU, m) {
  m.impl("recurrent", &recurrent_autocast<c10::kCPU>);
  add_uncast(m);
}

TORCH_LIBRARY_IMPL(rnnfused, AutocastCUDA, m) {
  m.impl("recurrent", &recurrent_autocast<c10::kCUDA>);
  add_uncast(m);
}

}  // namespace rnnfused
