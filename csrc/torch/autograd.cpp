#include "torch/autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <functional>

#include "torch/watchers.h"

namespace rnnfused {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// torch holds its nodes by std::shared_ptr or c10::intrusive_ptr, by release.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    // Found by its argument's type, in those releases that have it: long graphs must not be freed
    // recursively.
    return std::shared_ptr<T>(new T, [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>();
  }
}

template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using RecurrentSignature = Tensors(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                                   const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                   const OptionalTensor& resets, std::string_view layer, bool save);
using BackwardSignature = Tensors(const OptionalList& grads, const at::Tensor& input, at::TensorList hx,
                                  at::TensorList params, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& resets,
                                  const at::Tensor& output, const at::Tensor& tape, std::string_view layer,
                                  at::IntArrayRef wanted);

auto& recurrent_handle() {
  static auto found = handle<RecurrentSignature>("rnnfused::recurrent");
  return found;
}

auto& backward_handle() {
  static auto found = handle<BackwardSignature>("rnnfused::recurrent_backward");
  return found;
}

// Derivatives of a layer and of its gradients in a direction, and the derivatives of those; see library.cpp.
using TangentSignature = Tensors(const OptionalList& tangents, const OptionalList& grads,
                                 const OptionalList& grad_tangents, const at::Tensor& input,
                                 at::TensorList hx, at::TensorList params, const OptionalTensor& batch_sizes,
                                 const OptionalTensor& lengths, const OptionalTensor& resets,
                                 const at::Tensor& output, std::string_view layer, bool outputs,
                                 at::IntArrayRef wanted, const OptionalTensor& tape);
using DecomposedSignature = Tensors(const OptionalList& tangents, const OptionalList& grads,
                                    const OptionalList& grad_tangents, const at::Tensor& input,
                                    at::TensorList hx, at::TensorList params,
                                    const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                    const OptionalTensor& resets, const at::Tensor& output,
                                    std::string_view layer, bool outputs, at::IntArrayRef wanted);
using TangentBackwardSignature = Tensors(const OptionalList& outer, const OptionalList& tangents,
                                         const OptionalList& grads, const OptionalList& grad_tangents,
                                         const at::Tensor& input, at::TensorList hx, at::TensorList params,
                                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                         const OptionalTensor& resets, const at::Tensor& output,
                                         std::string_view layer, bool outputs, at::IntArrayRef wanted,
                                         at::IntArrayRef needed);

auto& tangent_handle() {
  static auto found = handle<TangentSignature>("rnnfused::recurrent_tangent");
  return found;
}

// The same in torch's operations.
auto& decomposed_handle() {
  static auto found = handle<DecomposedSignature>("rnnfused::recurrent_tangent_decomposed");
  return found;
}

Tensors call_tangent(const OptionalList& tangents, const OptionalList& grads,
                     const OptionalList& grad_tangents, const at::Tensor& input, at::TensorList hx,
                     at::TensorList params, const Layout& layout, const at::Tensor& output,
                     std::string_view layer, bool outputs, at::IntArrayRef wanted,
                     const OptionalTensor& tape = {}) {
  if (layer_options(layer).varied) {
    return decomposed_handle().call(tangents, grads, grad_tangents, input, hx, params, layout.batch_sizes,
                                    layout.lengths, layout.resets, output, layer, outputs, wanted);
  }
  return tangent_handle().call(tangents, grads, grad_tangents, input, hx, params, layout.batch_sizes,
                               layout.lengths, layout.resets, output, layer, outputs, wanted, tape);
}

OptionalList listed(at::TensorList tensors) {
  OptionalList list;
  list.reserve(tensors.size());
  for (const at::Tensor& t : tensors) list.push_back(t.defined() ? std::optional(t) : std::nullopt);
  return list;
}

Tensors unlisted(const OptionalList& list) {
  Tensors tensors;
  tensors.reserve(list.size());
  for (const std::optional<at::Tensor>& t : list) tensors.push_back(t.value_or(at::Tensor()));
  return tensors;
}

bool any_tangent(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& t) { return torch::autograd::isFwGradDefined(t); });
}

// Tensors of which some may not be there.
class SavedList {
 public:
  void save(at::TensorList tensors) {
    for (const at::Tensor& t : tensors) {
      given_.push_back(t.defined());
      if (t.defined()) saved_.emplace_back(t, false);
    }
  }
  OptionalList unpacked() const {
    OptionalList list;
    auto next = saved_.begin();
    for (const bool there : given_) list.push_back(there ? std::optional((next++)->unpack()) : std::nullopt);
    return list;
  }
  void release() {
    for (SavedVariable& v : saved_) v.reset_data();
  }
  size_t size() const { return given_.size(); }

 private:
  std::vector<SavedVariable> saved_;
  std::vector<bool> given_;
};

// A layer's arguments, kept for backward.
class SavedArguments {
 public:
  void save(const Arguments& a) {
    options_ = &a.options;
    input_ = SavedVariable(a.input, false);
    hx_ = saved(a.hx);
    params_ = saved(a.params);
    if (a.layout.padded()) return;
    Tensors where;
    for (const OptionalTensor& t : a.layout.all()) where.push_back(t.value_or(at::Tensor()));
    layout_.save(where);
  }
  void release() {
    input_.reset_data();
    for (SavedVariable& v : hx_) v.reset_data();
    for (SavedVariable& v : params_) v.reset_data();
    layout_.release();
  }

  static std::vector<SavedVariable> saved(at::TensorList tensors) {
    std::vector<SavedVariable> found;
    found.reserve(tensors.size());
    for (const at::Tensor& t : tensors) found.emplace_back(t, false);
    return found;
  }
  static Tensors unpacked(const std::vector<SavedVariable>& saved) {
    Tensors found;
    found.reserve(saved.size());
    for (const SavedVariable& v : saved) found.push_back(v.unpack());
    return found;
  }

  const LayerOptions& options() const { return *options_; }
  size_t count() const { return 1 + hx_.size() + params_.size(); }

  friend struct UnpackedArguments;

 private:
  const LayerOptions* options_ = nullptr;
  SavedVariable input_;
  std::vector<SavedVariable> hx_, params_;
  SavedList layout_;  // in the order of Layout::all(); of padded input nothing
};

struct UnpackedArguments {
  at::Tensor input;
  Tensors hx, params;
  Layout layout;
  const LayerOptions& options;

  explicit UnpackedArguments(const SavedArguments& saved)
      : input(saved.input_.unpack()),
        hx(SavedArguments::unpacked(saved.hx_)),
        params(SavedArguments::unpacked(saved.params_)),
        options(*saved.options_) {
    if (saved.layout_.size() == 0) return;
    const OptionalList where = saved.layout_.unpacked();
    layout = {where[0], where[1], where[2]};
  }
  Arguments view() const { return {options, input, hx, params, layout}; }
};

// What a profiler is told of a call that does not pass through the dispatcher.
std::vector<c10::IValue> seen(const Arguments& a) { return {a.input, a.hx.vec(), a.params.vec()}; }

// Gradients of a layer, from the kernels themselves where nobody wants to see it.
Tensors gradients(const Arguments& a, const Tensors& outer, const Kept& kept, at::IntArrayRef wanted) {
  const bool plain = std::all_of(outer.begin(), outer.end(), is_plain) && is_plain(kept.output) &&
                     is_plain(kept.tape) && !somebody_watches(a);
  if (plain && !at::GradMode::is_enabled()) {
    RECORD_FUNCTION("rnnfused::recurrent_backward", seen(a));
    const at::AutoDispatchBelowADInplaceOrView below;
    return recurrent_backward(a, outer, kept, wanted);
  }
  return call_backward(listed(outer), a.input, a.hx, a.params, a.layout, kept.output, kept.tape,
                       a.options.text, wanted);
}

struct RecurrentBackward final : Node {
  SavedArguments arguments;
  SavedVariable output, tape;

  std::string name() const override { return "RecurrentBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    arguments.release();
    output.reset_data();
    tape.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(arguments.count());
    at::DimVector wanted;
    for (size_t i = 0; i < found.size(); ++i) {
      if (task_should_compute_output(i)) wanted.push_back(int64_t(i));
    }
    const bool any = std::any_of(grads.begin(), grads.end(), [](const auto& g) { return g.defined(); });
    if (!any || wanted.empty()) return found;
    // A zero that torch has not written out is what the kernels take nothing for.
    for (at::Tensor& grad : grads) {
      if (grad.defined() && grad._is_zerotensor()) grad = at::Tensor();
    }
    const UnpackedArguments given(arguments);
    const at::Tensor y = output.unpack(getptr()), kept = tape.unpack();
    Tensors computed = gradients(given.view(), grads, {y, kept}, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) found[size_t(wanted[i])] = std::move(computed[i]);
    return found;
  }
};

// Of recurrent_backward. y and the tape are functions of the layer's arguments: what they add to the
// derivative is counted there, and nothing flows back through them.
struct RecurrentDoubleBackward final : Node {
  SavedArguments arguments;
  SavedList grads;
  SavedVariable output;
  at::DimVector wanted;

  std::string name() const override { return "RecurrentBackwardBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    arguments.release();
    grads.release();
    output.reset_data();
  }

  variable_list apply(variable_list&& outer) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t first = grads.size();
    variable_list found(first + arguments.count());
    Tensors directions(arguments.count());
    for (size_t i = 0; i < wanted.size(); ++i) {
      at::Tensor& direction = directions[size_t(wanted[i])];
      if (!outer[i].defined()) continue;
      direction = direction.defined() ? at::add(direction, outer[i]) : outer[i];
    }
    if (std::none_of(outer.begin(), outer.end(), [](const auto& t) { return t.defined(); })) return found;
    bool outputs = false;
    at::DimVector second;
    for (size_t i = 0; i < first; ++i) outputs = outputs || task_should_compute_output(i);
    for (size_t i = first; i < found.size(); ++i) {
      if (task_should_compute_output(i)) second.push_back(int64_t(i - first));
    }
    const UnpackedArguments a(arguments);
    const Tensors computed =
        call_tangent(listed(directions), grads.unpacked(), OptionalList(), a.input, a.hx, a.params, a.layout,
                     output.unpack(), a.options.text, outputs, second);
    if (outputs) std::copy_n(computed.begin(), first, found.begin());
    for (size_t i = 0; i < second.size(); ++i) {
      found[first + size_t(second[i])] = computed[(outputs ? first : 0) + i];
    }
    for (size_t i = 0; i < found.size(); ++i) {
      if (!task_should_compute_output(i)) found[i] = at::Tensor();
    }
    return found;
  }
};

// Of recurrent_tangent, in torch's operations: derivatives of third order.
struct RecurrentTangentBackward final : Node {
  SavedArguments arguments;
  SavedList tangents, grads, grad_tangents;
  SavedVariable output;
  bool outputs = false;
  at::DimVector wanted;

  std::string name() const override { return "RecurrentTangentBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    arguments.release();
    tangents.release(), grads.release(), grad_tangents.release();
    output.reset_data();
  }

  variable_list apply(variable_list&& outer) override {
    static auto backward = handle<TangentBackwardSignature>("rnnfused::recurrent_tangent_backward");
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(num_outputs());
    at::DimVector needed;
    for (size_t i = 0; i < found.size(); ++i) {
      if (task_should_compute_output(i)) needed.push_back(int64_t(i));
    }
    const UnpackedArguments a(arguments);
    const Tensors computed =
        backward.call(listed(outer), tangents.unpacked(), grads.unpacked(), grad_tangents.unpacked(), a.input,
                      a.hx, a.params, a.layout.batch_sizes, a.layout.lengths, a.layout.resets,
                      output.unpack(), a.options.text, outputs, wanted, needed);
    for (size_t i = 0; i < needed.size(); ++i) found[size_t(needed[i])] = computed[i];
    return found;
  }
};

struct NoBackward final : Node {
  const LayerOptions* options = nullptr;

  std::string name() const override { return "NoBackward"; }

  variable_list apply(variable_list&&) override {
    check_gradients(*options);
    return {};
  }
};

Tensors tangents_of(at::TensorList tensors) {
  Tensors found;
  found.reserve(tensors.size());
  for (const at::Tensor& t : tensors) found.push_back(t.defined() ? t._fw_grad(0) : at::Tensor());
  return found;
}

Tensors primals_of(at::TensorList tensors) {
  Tensors found;
  found.reserve(tensors.size());
  for (const at::Tensor& t : tensors) found.push_back(t.defined() ? t._fw_primal(0) : at::Tensor());
  return found;
}

// Everything of a layer that can be differentiated, in the order of its gradients.
Tensors all_of(const Arguments& a) {
  Tensors all{a.input};
  all.insert(all.end(), a.hx.begin(), a.hx.end());
  all.insert(all.end(), a.params.begin(), a.params.end());
  return all;
}

void set_tangents(Tensors& outputs, const Tensors& tangents) {
  for (size_t i = 0; i < tangents.size(); ++i) outputs[i]._set_fw_grad(tangents[i], /*level=*/0, false);
}

bool has_tangent(const Arguments& a) {
  return torch::autograd::isFwGradDefined(a.input) || any_tangent(a.hx) || any_tangent(a.params);
}

bool is_followed(const Arguments& a) {
  return torch::autograd::compute_requires_grad(a.input, a.hx, a.params);
}

// The output as backward reads it. A step's backward reads it only where the cell tapes nothing: else the
// next state may be changed in place, as that of torch's cells.
SavedVariable saved_output(const LayerOptions& o, const at::Tensor& output) {
  if (o.step && o.info.taped > 0 && is_plain(output)) return SavedVariable(output.variable_data(), false);
  return SavedVariable(output, /*is_output=*/true);
}

// Runs the layer by `below` and records how it is differentiated. With the tape or without, as `save` says.
template <class Below>
Tensors differentiated(const Arguments& a, bool save, bool moved, const Below& below) {
  const bool followed = is_followed(a);
  if (!followed && !moved) return below(a, save);
  if (a.options.int8) {
    if (moved) check_gradients(a.options);
    return without_gradients(a, below(a, save));
  }
  Tensors outputs;
  const bool taped = save || followed || (moved && tapes_for_tangents(a));
  const auto run = [&] { outputs = below(a, taped); };
  const size_t count = a.options.outputs();
  if (followed) {
    auto node = make_node<RecurrentBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(a.input, a.hx, a.params));
    node->arguments.save(a);
    run();
    for (size_t i = 0; i < count; ++i) torch::autograd::set_history(outputs[i], node);
    node->output = saved_output(a.options, outputs[0]);
    node->tape = SavedVariable(outputs[count], false);
  } else {
    run();
  }
  if (moved) {
    const Tensors all = all_of(a), primals = primals_of(all);
    const size_t states = a.hx.size();
    const OptionalTensor tape =
        taped && tapes_for_tangents(a) ? OptionalTensor(outputs[count]) : std::nullopt;
    set_tangents(outputs, call_tangent(listed(tangents_of(all)), OptionalList(), OptionalList(), primals[0],
                                       at::TensorList(primals).slice(1, states),
                                       at::TensorList(primals).slice(1 + states), a.layout,
                                       outputs[0]._fw_primal(0), a.options.text, true, {}, tape));
  }
  if (!save) outputs.resize(count);
  return outputs;
}

// What is differentiated runs layer by layer, each an operator of its own.
template <class Run>
Tensors by_layers(const Arguments& a, const Run& run) {
  const LayerOptions& last = *a.options.single;
  at::Tensor x = a.input, cells;
  std::vector<Tensors> finals(last.states());
  for (int64_t l = 0; l < a.options.layers; ++l) {
    const LayerOptions& single = l + 1 < a.options.layers ? *a.options.inner : last;
    Tensors hx;
    for (const at::Tensor& state : a.hx)
      hx.push_back(state.narrow(0, l * single.directions, single.directions));
    const size_t each = single.params_each() * size_t(single.directions);
    at::TensorList params = a.params.slice(size_t(l) * each, each);
    Tensors with_seed;
    if (single.drawn) {
      with_seed = params.vec();
      with_seed.push_back(a.params.back().narrow(0, l, 1));
      params = with_seed;
    }
    // Under autocast a layer may give its states' type, wider than the next one's weights.
    if (x.scalar_type() != a.input.scalar_type()) x = x.to(a.input.scalar_type());
    Tensors outputs = run(Arguments{single, x, hx, params, a.layout});
    x = outputs[0];
    for (size_t s = 0; s < finals.size(); ++s) finals[s].push_back(outputs[1 + s]);
    if (single.cells) cells = outputs.back();
  }
  Tensors results{x};
  for (const Tensors& of_state : finals) results.push_back(at::cat(of_state));
  if (cells.defined()) results.push_back(cells);
  return results;
}

// Whether layers run one by one, each with its part of the graph.
bool is_graph_of_layers(const Arguments& a, bool moved) {
  return a.options.layers > 1 && !a.options.int8 && (moved || is_followed(a));
}

}  // namespace

Tensors without_gradients(const Arguments& a, Tensors outputs) {
  if (!is_followed(a)) return outputs;
  auto node = make_node<NoBackward>();
  node->options = &a.options;
  node->set_next_edges(torch::autograd::collect_next_edges(a.input, a.hx, a.params));
  for (at::Tensor& output : outputs) torch::autograd::set_history(output, node);
  return outputs;
}

Tensors call_recurrent(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                       const Layout& layout, std::string_view layer, bool save) {
  return recurrent_handle().call(input, hx, params, layout.batch_sizes, layout.lengths, layout.resets, layer,
                                 save);
}

Tensors call_backward(const OptionalList& grads, const at::Tensor& input, at::TensorList hx,
                      at::TensorList params, const Layout& layout, const at::Tensor& output,
                      const at::Tensor& tape, std::string_view layer, at::IntArrayRef wanted) {
  return backward_handle().call(grads, input, hx, params, layout.batch_sizes, layout.lengths, layout.resets,
                                output, tape, layer, wanted);
}

Tensors recurrent_unwatched(const Arguments& arguments) {
  const auto run = [](const Arguments& a) {
    // What has a tangent is watched.
    return differentiated(a, false, /*moved=*/false, [](const Arguments& given, bool save) {
      RECORD_FUNCTION("rnnfused::recurrent", seen(given));
      const at::AutoDispatchBelowADInplaceOrView below;
      return recurrent(given, save);
    });
  };
  if (is_graph_of_layers(arguments, false)) {
    check(arguments);
    return by_layers(arguments, run);
  }
  return run(arguments);
}

bool is_short(const Arguments& a) {
  if (!a.input.is_cpu()) return false;
  double weights = 0;
  for (const at::Tensor& w : a.params) weights += double(w.numel());
  const int64_t features = a.input.dim() > 0 ? a.input.size(-1) : 0;
  return features > 0 && weights * double(a.input.numel() / features) < 1 << 18;
}

Tensors recurrent_autograd(c10::DispatchKeySet keys, const at::Tensor& input, at::TensorList hx,
                           at::TensorList params, const OptionalTensor& batch_sizes,
                           const OptionalTensor& lengths, const OptionalTensor& resets,
                           std::string_view layer, bool save) {
  const Arguments arguments{layer_options(layer), input, hx, params, {batch_sizes, lengths, resets}};
  const bool moved = has_tangent(arguments);
  if (is_graph_of_layers(arguments, moved)) {
    TORCH_CHECK_VALUE(!save, "save: expected one layer, got ", arguments.options.layers);
    check(arguments);
    return by_layers(arguments, [](const Arguments& a) {
      return call_recurrent(a.input, a.hx, a.params, a.layout, a.options.text, false);
    });
  }
  return differentiated(arguments, save, moved, [&](const Arguments& a, bool with_tape) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return recurrent_handle().redispatch(keys & c10::after_autograd_keyset, a.input, a.hx, a.params,
                                         batch_sizes, lengths, resets, a.options.text, with_tape);
  });
}

Tensors backward_autograd(c10::DispatchKeySet keys, const OptionalList& grads, const at::Tensor& input,
                          at::TensorList hx, at::TensorList params, const OptionalTensor& batch_sizes,
                          const OptionalTensor& lengths, const OptionalTensor& resets,
                          const at::Tensor& output, const at::Tensor& tape, std::string_view layer,
                          at::IntArrayRef wanted) {
  const Arguments a{layer_options(layer), input, hx, params, {batch_sizes, lengths, resets}};
  const Tensors outer = unlisted(grads), all = all_of(a);
  const bool followed = torch::autograd::compute_requires_grad(at::TensorList(outer), input, hx, params);
  const bool moved = any_tangent(all) || any_tangent(outer);
  Tensors computed;
  const auto run = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    computed = backward_handle().redispatch(keys & c10::after_autograd_keyset, grads, input, hx, params,
                                            batch_sizes, lengths, resets, output, tape, layer, wanted);
  };
  if (followed) {
    auto node = make_node<RecurrentDoubleBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(at::TensorList(outer), input, hx, params));
    node->arguments.save(a);
    node->grads.save(outer);
    node->output = SavedVariable(output, false);
    node->wanted = at::DimVector(wanted);
    run();
    torch::autograd::set_history(computed, node);
  } else {
    run();
  }
  if (moved) {
    const Tensors primals = primals_of(all), outer_primals = primals_of(outer);
    set_tangents(computed,
                 call_tangent(listed(tangents_of(all)), listed(outer_primals), listed(tangents_of(outer)),
                              primals[0], at::TensorList(primals).slice(1, hx.size()),
                              at::TensorList(primals).slice(1 + hx.size()), a.layout, output._fw_primal(0),
                              layer, false, wanted));
  }
  return computed;
}

Tensors tangent_autograd(c10::DispatchKeySet keys, const OptionalList& tangents, const OptionalList& grads,
                         const OptionalList& grad_tangents, const at::Tensor& input, at::TensorList hx,
                         at::TensorList params, const OptionalTensor& batch_sizes,
                         const OptionalTensor& lengths, const OptionalTensor& resets,
                         const at::Tensor& output, std::string_view layer, bool outputs,
                         at::IntArrayRef wanted, const OptionalTensor& tape) {
  const Arguments a{layer_options(layer), input, hx, params, {batch_sizes, lengths, resets}};
  const Tensors along = unlisted(tangents), outer = unlisted(grads), moved = unlisted(grad_tangents);
  if (a.options.varied || has_tangent(a) || any_tangent(along) || any_tangent(outer) || any_tangent(moved)) {
    return decomposed_handle().call(tangents, grads, grad_tangents, input, hx, params, batch_sizes, lengths,
                                    resets, output, layer, outputs, wanted);
  }
  const auto below = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return tangent_handle().redispatch(keys & c10::after_autograd_keyset, tangents, grads, grad_tangents,
                                       input, hx, params, batch_sizes, lengths, resets, output, layer,
                                       outputs, wanted, tape);
  };
  const at::TensorList lists[] = {along, outer, moved};
  if (!is_followed(a) && !torch::autograd::compute_requires_grad(lists[0], lists[1], lists[2]))
    return below();
  auto node = make_node<RecurrentTangentBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(lists[0], lists[1], lists[2], input, hx, params));
  node->arguments.save(a);
  node->tangents.save(along), node->grads.save(outer), node->grad_tangents.save(moved);
  node->output = SavedVariable(output, false);
  node->outputs = outputs;
  node->wanted = at::DimVector(wanted);
  Tensors computed = below();
  torch::autograd::set_history(computed, node);
  return computed;
}

}  // namespace rnnfused
