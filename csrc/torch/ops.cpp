#include "torch/ops.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "cpu/dispatch.h"
#include "torch/backends.h"
#include "torch/gathered.h"
#include "torch/gpu.h"
#include "torch/memory.h"
#include "torch/tangents.h"

namespace rnnfused {

namespace {

std::shared_ptr<const Sequences> sequences_of(const Arguments& a, const Form& form, bool on_device = false) {
  return std::make_shared<const Sequences>(a, form, on_device);
}

// From the caller's order of steps and batch to the kernels', or back.
struct Order {
  bool transposed, masked;

  Order(const Arguments& a, const Form& form, bool placed = false)
      : transposed(a.options.batch_first && form.batched && form.padded() && !placed), masked(form.masked) {}
  at::Tensor operator()(const at::Tensor& t) const { return transposed ? t.transpose(0, 1) : t; }
  // Of a result.
  at::Tensor back(const at::Tensor& t) const { return masked ? (*this)(t).contiguous() : (*this)(t); }
};

// Of final states, as the caller counts their dimensions.
at::DimVector final_sizes(const Arguments& a, const Form& form, const Sequences& sequences, int state) {
  at::DimVector sizes;
  if (!a.options.step) sizes.push_back(a.options.layers * a.options.directions);
  if (form.batched) sizes.push_back(sequences.callers_batch);
  sizes.push_back(state == 0 ? form.output : a.options.second_state(form.hidden));
  return sizes;
}

at::Tensor as(const at::Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }

// Final states of all layers, each of which writes its own part.
at::Tensor part_of(const at::Tensor& whole, const LayerOptions& o, int64_t layer) {
  return o.layers == 1 || !whole.defined() ? whole : whole.narrow(0, layer * o.directions, o.directions);
}

// What a wanted gradient is of, in the order of BackwardTensors: x, h0, c0 and kSlots weights a direction.
size_t place_of(const Arguments& a, int64_t index) {
  const int64_t states = int64_t(a.hx.size()), each = int64_t(a.options.params_each());
  TORCH_CHECK(index >= 0 && index < 1 + states + int64_t(a.params.size()), "wanted: expected indices below ",
              1 + states + int64_t(a.params.size()), ", got ", index);
  if (index <= states) return size_t(index);
  const int64_t param = index - 1 - states;
  TORCH_CHECK(param < each * a.options.directions, "wanted: seeds have no gradient");
  return size_t(3 + param / each * kSlots + a.options.slots[size_t(param % each)]);
}

void check_tape(const Arguments& a, const Form& form, const at::Tensor& tape) {
  check_tensor(tape, "tape", a.input.device(), tape_type(a.input), tape_sizes(a.options, form, a.input));
  TORCH_CHECK(tape.is_contiguous(), "tape: expected a contiguous tensor, got strides ", tape.strides());
  check_memory(tape, "tape");
}

// Of the outputs as kernels give them, which read how many sequences packed rows are of.
std::vector<c10::SymDimVector> output_sizes(const Arguments& a, const Form& form,
                                            const Sequences& sequences) {
  std::vector<c10::SymDimVector> sizes = rnnfused::output_sizes(a, form);
  if (form.order != RowOrder::packed || !a.hx.empty()) return sizes;
  const size_t first_state = a.options.step ? 0 : 1;
  for (size_t s = first_state; s < first_state + a.options.states(); ++s)
    sizes[s][1] = sequences.callers_batch;
  return sizes;
}

// ---- Placed sequences, for what knows no places: the same call on packed rows

// Something of a call's states, with a batch dimension and with all layers and directions in the first.
at::Tensor by_part(const Arguments& a, const Sequences& sequences, const at::Tensor& states) {
  return states.defined() ? states.reshape({a.options.layers * a.options.directions, sequences.callers_batch,
                                            states.size(-1)})
                          : states;
}

// The call's arguments in this form, and what it gives in the caller's.
class PackedCall {
 public:
  PackedCall(const Arguments& a, const Form& form, const Sequences& sequences)
      : a_(a), form_(form), sequences_(sequences), gathered_(sequences, a.input.device()) {
    input_ = gathered_.rows(a.input);
    hx_ = initial(a.hx);
  }

  Arguments arguments() const {
    return {a_.options, input_, hx_, a_.params, {gathered_.batch_sizes()}, &sequences_};
  }

  at::Tensor rows(const at::Tensor& t) const { return gathered_.rows(t); }
  Tensors initial(at::TensorList states) const {
    Tensors all;
    for (const at::Tensor& t : states)
      all.push_back(gathered_.initial(by_part(a_, sequences_, t), a_.options.directions));
    return all;
  }
  // What is shaped as the input, hx and params.
  Tensors inputs(at::TensorList all) const {
    Tensors found{rows(all[0])};
    for (const at::Tensor& t : initial(all.slice(1, a_.hx.size()))) found.push_back(t);
    for (const at::Tensor& t : all.slice(1 + a_.hx.size())) found.push_back(t);
    return found;
  }
  // What is shaped as the outputs; none stays none.
  Tensors outputs(at::TensorList all) const {
    Tensors found;
    for (size_t i = 0; i < all.size(); ++i) {
      found.push_back(a_.options.is_sequence(i)
                          ? rows(all[i])
                          : gathered_.final(by_part(a_, sequences_, all[i]), a_.options.directions));
    }
    return found;
  }

  // Of one output; states that go straight through are those of `through`.
  at::Tensor output_back(const at::Tensor& t, size_t index, const at::Tensor& through) const {
    if (a_.options.is_sequence(index)) {
      at::DimVector sizes(a_.input.sizes());
      sizes.back() = t.size(-1);
      return gathered_.rows_back(t, sizes);
    }
    return gathered_.final_back(t, a_.options.directions, by_part(a_, sequences_, through))
        .reshape(final_sizes(a_, form_, sequences_, int(index) - 1));
  }
  // Of something shaped as one of the inputs.
  at::Tensor input_back(const at::Tensor& t, int64_t index, const at::Tensor& through) const {
    if (index == 0) return gathered_.rows_back(t, a_.input.sizes());
    if (size_t(index) > a_.hx.size()) return t;
    return gathered_.initial_back(t, a_.options.directions, by_part(a_, sequences_, through))
        .reshape(a_.hx[size_t(index) - 1].sizes());
  }
  // Of what has a row for each of the caller's, by steps.
  at::Tensor rows_back_by_steps(const at::Tensor& t) const {
    at::DimVector sizes(a_.input.sizes());
    sizes.back() = t.size(-1);
    return Order(a_, form_)(gathered_.rows_back(t, sizes)).reshape({-1, t.size(-1)});
  }

 private:
  const Arguments& a_;
  const Form& form_;
  const Sequences& sequences_;
  Gathered gathered_;
  at::Tensor input_;
  Tensors hx_;
};

// Of tensors for each state, or of none.
at::Tensor of_state(at::TensorList all, size_t index) {
  return index < all.size() ? all[index] : at::Tensor();
}

// States that go straight through sequences without a step; every other sequence has its own written.
void pass_through(const Arguments& a, const Sequences& sequences, const at::Tensor& out,
                  const at::Tensor& from) {
  if (!sequences.placed || !out.defined()) return;
  out.zero_();
  if (!from.defined()) return;
  const at::Tensor to = by_part(a, sequences, out), of = by_part(a, sequences, from);
  for (const Index b : sequences.empty) to.select(1, b).copy_(of.select(1, b));
}

Tensors run_forward(const Arguments& a, bool save, KeptWeights* kept) {
  const LayerOptions& o = a.options;
  const Form form = check(a);
  check_kernels(o, a.input);
  TORCH_CHECK_VALUE(!save || o.layers == 1, "save: expected one layer, got ", o.layers);
  if (save) check_gradients(o);
  const bool on_gpu = gpu::serves(a.input.device());
  const auto sequences = sequences_of(a, form, on_gpu);
  if (sequences->placed && on_gpu) {
    const PackedCall call(a, form, *sequences);
    Tensors results = run_forward(call.arguments(), save, kept);
    for (size_t i = 0; i < o.outputs(); ++i)
      results[i] = call.output_back(results[i], i, i > 0 ? of_state(a.hx, i - 1) : at::Tensor());
    return results;
  }
  const Order order(a, form, sequences->placed);
  at::Tensor x = order(a.input), hn, cn;
  std::vector<Inputs> stack;
  std::vector<ForwardTensors> out;
  stack.reserve(size_t(o.layers));
  out.reserve(size_t(o.layers));
  for (int64_t l = 0; l < o.layers; ++l) {
    stack.emplace_back(a, form, sequences, l, x);
    const Inputs& in = stack.back();
    if (in.on_gpu) {
      out.push_back(forward_on_gpu(in, save, o.recompute, kept ? &kept->prepared.at(size_t(l)) : nullptr));
    } else {
      if (l == 0) {
        hn = in.empty_computed(final_sizes(a, form, *sequences, 0));
        if (o.states() > 1) cn = in.empty_computed(final_sizes(a, form, *sequences, 1));
        pass_through(a, *sequences, hn, of_state(a.hx, 0));
        pass_through(a, *sequences, cn, of_state(a.hx, 1));
      }
      out.push_back(outputs_on_cpu(in, part_of(hn, o, l), part_of(cn, o, l), save, o.recompute));
    }
    x = out.back().y;
  }
  if (stack[0].on_gpu) {
    const auto finals = [&](at::Tensor ForwardTensors::* state, int index) {
      Tensors parts;
      for (const ForwardTensors& one : out) parts.push_back(one.*state);
      return (o.layers == 1 ? parts[0] : at::cat(parts)).view(final_sizes(a, form, *sequences, index));
    };
    hn = finals(&ForwardTensors::hn, 0);
    if (o.states() > 1) cn = finals(&ForwardTensors::cn, 1);
  } else {
    forward_on_cpu({stack.data(), stack.size()}, {out.data(), out.size()}, o.recompute,
                   kept ? &kept->packed : nullptr);
  }
  const at::ScalarType type = state_type(a);
  Tensors results;
  results.reserve(4);
  if (!o.step) results.push_back(as(order.back(out.back().y), type));
  results.push_back(as(hn, type));
  if (o.states() > 1) results.push_back(as(cn, type));
  if (o.cells) results.push_back(as(order.back(out.back().cells), type));
  if (save) results.push_back(out[0].tape);
  return results;
}

Tensors run_backward(const Arguments& a, at::TensorList outer, const Kept& kept, at::IntArrayRef wanted) {
  const LayerOptions& o = a.options;
  check_gradients(o);
  const Form form = check(a);
  check_kernels(o, a.input);
  TORCH_CHECK_VALUE(o.layers == 1, "layer: expected one layer, got ", o.layers);
  TORCH_CHECK(outer.size() == o.outputs(), "grads: expected ", o.outputs(), " entries, got ", outer.size());
  const bool on_gpu = gpu::serves(a.input.device());
  const auto sequences = sequences_of(a, form, on_gpu);
  if (sequences->placed && on_gpu) {
    const PackedCall call(a, form, *sequences);
    Tensors results =
        run_backward(call.arguments(), call.outputs(outer), {call.rows(kept.output), kept.tape}, wanted);
    for (size_t i = 0; i < wanted.size(); ++i)
      results[i] = call.input_back(results[i], wanted[i], of_state(outer, size_t(wanted[i])));
    return results;
  }
  const Order order(a, form, sequences->placed);
  const Inputs in(a, form, sequences, 0, order(a.input));
  const std::vector<c10::SymDimVector> sizes = output_sizes(a, form, *sequences);
  const at::ScalarType type = state_type(a);
  // What the kernels read as it is stored, or in the type that is computed in.
  const auto read = [&](const at::Tensor& t, const char* name, size_t index, bool is_sequence,
                        bool is_stored) {
    if (!t.defined()) return t;
    check_tensor(t, name, a.input.device(), type, sizes[index]);
    const at::Tensor laid_out = is_sequence ? order(t) : t;
    if (in.on_gpu) return is_sequence ? as(dense(laid_out, name), in.x.scalar_type()) : dense(laid_out, name);
    return as(dense(laid_out, name), is_stored ? in.x.scalar_type() : compute_type(in.x.scalar_type()));
  };
  const size_t first_state = o.step ? 0 : 1;
  TORCH_CHECK(kept.output.defined(), "output: expected a tensor, got none");
  check_tape(a, form, kept.tape);
  OptionalTensors gradients(size_t(3 + o.directions * kSlots));
  const BackwardTensors tensors{
      read(kept.output, "output", 0, !o.step, true),
      kept.tape,
      o.step ? at::Tensor() : read(outer[0], "grad_output", 0, true, true),
      read(outer[first_state], "grad_h_n", first_state, false, false),
      o.states() > 1 ? read(outer[first_state + 1], "grad_c_n", first_state + 1, false, false) : at::Tensor(),
      o.cells ? read(outer.back(), "grad_cells", outer.size() - 1, true, false) : at::Tensor(),
      gradients};
  std::vector<size_t> places;
  for (const int64_t index : wanted) places.push_back(place_of(a, index));
  const auto is_state = [](size_t place) { return place == 1 || place == 2; };
  const auto of = [&](size_t place) -> const at::Tensor& {
    return place == 0 ? in.x : is_state(place) ? a.hx[place - 1] : in.weights[place - 3];
  };
  // The largest first: small ones find room in what they leave of a piece of memory.
  std::vector<size_t> largest_first = places;
  std::sort(largest_first.begin(), largest_first.end(), [&](size_t one, size_t other) {
    return std::pair(of(one).numel(), other) > std::pair(of(other).numel(), one);
  });
  for (const size_t place : largest_first) {
    if (gradients[place]) continue;
    gradients[place] = place == 0        ? in.empty(in.x.sizes())
                       : is_state(place) ? in.empty_computed(of(place).sizes())
                                         : in.empty_gradient(place - 3);
    if (is_state(place)) pass_through(a, *sequences, *gradients[place], place == 1 ? tensors.dh : tensors.dc);
  }
  in.on_gpu ? backward_on_gpu(in, tensors, o.recompute) : backward_on_cpu(in, tensors, o.recompute);
  // Of the memory that the call has left.
  const auto rounded = [&](const at::Tensor& t, at::ScalarType to) {
    if (in.on_gpu || t.scalar_type() == to || to != in.x.scalar_type()) return as(t, to);
    return in.empty(t.sizes()).copy_(t);
  };
  Tensors results;
  results.reserve(places.size());
  for (auto place_at = places.begin(); place_at != places.end(); ++place_at) {
    const size_t place = *place_at;
    const auto before = std::find(places.begin(), place_at, place);
    if (before != place_at) {
      results.push_back(results[size_t(before - places.begin())].clone());
      continue;
    }
    // Taken, so that of a gradient that is rounded here the float32 one is gone before the next is rounded.
    const at::Tensor found = *std::exchange(gradients[place], std::nullopt);
    results.push_back(
        rounded(place == 0 ? order.back(found) : found, is_state(place) ? type : a.input.scalar_type()));
    if (o.varied && place > 2) results.back() = as_given(in, place - 3, results.back());
  }
  return results;
}

}  // namespace

Tensors recurrent(const Arguments& a, bool save, KeptWeights* kept) {
  return within_memory([&] { return run_forward(a, save, kept); });
}

Tensors recurrent_backward(const Arguments& a, at::TensorList outer, const Kept& kept,
                           at::IntArrayRef wanted) {
  return within_memory([&] { return run_backward(a, outer, kept, wanted); });
}

namespace {

// One layer's arguments with all dimensions that there can be: steps, batch and units, directions, batch and
// units.
struct Canonical {
  const LayerOptions& options;
  Form form;
  std::shared_ptr<const Sequences> sequences;
  Order order;
  at::Tensor input;
  Tensors hx;
  at::ScalarType computed;

  Canonical(const Arguments& a, const Form& checked, std::shared_ptr<const Sequences> of)
      : options(a.options),
        form(checked),
        sequences(std::move(of)),
        order(a, form),
        input(sequence(a.input)),
        computed(compute_type(a.input.scalar_type())) {
    check_gradients(options);
    TORCH_CHECK_VALUE(options.layers == 1, "layer: expected one layer, got ", options.layers);
    for (const at::Tensor& state : a.hx) hx.push_back(states(state));
  }
  Index batch() const { return sequences->callers_batch; }

  at::Tensor sequence(const at::Tensor& t) const {
    if (!t.defined() || !form.padded()) return t;
    return order(t).reshape({sequences->steps, batch(), t.size(-1)});
  }
  at::Tensor states(const at::Tensor& t) const {
    return t.defined() ? t.reshape({options.directions, batch(), t.size(-1)}) : t;
  }
  Inputs inputs(const Arguments& a) const {
    return Inputs({options, input, hx, a.params, a.layout}, form, sequences, 0, input, /*computed=*/true);
  }
  // What a call is given of the outputs, in the type that is computed in.
  OutputTensors outputs(at::TensorList all) const {
    OutputTensors out;
    if (all.empty()) return out;
    const size_t first_state = options.step ? 0 : 1;
    if (!options.step) out.y = wide(sequence(all[0]));
    out.hn = wide(states(all[first_state]));
    if (options.states() > 1) out.cn = wide(states(all[first_state + 1]));
    if (options.cells) out.cells = wide(sequence(all.back()));
    return out;
  }
  at::Tensor output(const at::Tensor& t) const {
    return wide(options.step ? t.reshape({1, batch(), t.size(-1)}) : sequence(t));
  }
  at::Tensor wide(const at::Tensor& t) const { return t.defined() ? as(t, computed) : t; }
};

// Whether there are kernels for more than the gradients.
void check_torchs_own(const LayerOptions& o) {
  TORCH_CHECK(!o.varied, "layer: derivatives beyond the gradients of '", o.text,
              "' are those of recurrent_tangent_decomposed");
}

Arguments without_layout(const Arguments& a) { return {a.options, a.input, a.hx, a.params, {}}; }

// That a tensor, if it is there, can be read as one of such sizes; its type may be another.
void check_like(const Arguments& a, const at::Tensor& t, const char* name, c10::SymIntArrayRef sizes) {
  if (!t.defined()) return;
  TORCH_CHECK(t.is_floating_point(), name, ": expected a floating-point dtype, got ", t.scalar_type());
  check_tensor(t, name, a.input.device(), t.scalar_type(), sizes);
  check_memory(t, name);
}

// What derivatives beyond the gradients are given, before anything of it is read. Of what is empty every
// tensor is zero.
class BeyondGradients {
 public:
  BeyondGradients(const Arguments& a, const Form& form, const Sequences& sequences)
      : a_(a), sizes_(output_sizes(a, form, sequences)) {
    check_torchs_own(a.options);
    check_memory(a.input, "input");
    for (const at::Tensor& t : a.hx) check_memory(t, "hx");
  }

  void check_inputs(at::TensorList all, const char* name) const {
    const size_t states = a_.hx.size(), inputs = 1 + states + a_.params.size();
    TORCH_CHECK(all.size() == inputs, name, ": expected ", inputs, " entries, got ", all.size());
    for (size_t i = 0; i < inputs; ++i) {
      const at::Tensor& like = i == 0 ? a_.input : i <= states ? a_.hx[i - 1] : a_.params[i - 1 - states];
      check_like(a_, all[i], name, like.sym_sizes());
    }
  }
  void check_outputs(at::TensorList all, const char* name) const {
    if (all.empty()) return;
    TORCH_CHECK(all.size() == sizes_.size(), name, ": expected ", sizes_.size(), " entries, got ",
                all.size());
    for (size_t i = 0; i < all.size(); ++i) check_like(a_, all[i], name, sizes_[i]);
  }
  void check_output(const at::Tensor& t) const {
    TORCH_CHECK(t.defined(), "output: expected a tensor, got none");
    check_like(a_, t, "output", sizes_[0]);
  }

 private:
  const Arguments& a_;
  std::vector<c10::SymDimVector> sizes_;
};

}  // namespace

bool tapes_for_tangents(const Arguments& a) {
  const LayerOptions& o = a.options;
  return a.input.is_cpu() && !is_on_gpu(a.input) &&
         a.input.scalar_type() == compute_type(a.input.scalar_type()) && !o.varied && !o.recompute &&
         !o.projected && o.info.taped > 0 && !a.layout.lengths && !a.layout.resets;
}

Tensors recurrent_tangent(const Arguments& a, const Directions& d, const Kept& kept, bool outputs,
                          at::IntArrayRef wanted) {
  const Form form = check(a);
  const auto sequences = sequences_of(a, form);
  const BeyondGradients given(a, form, *sequences);
  given.check_inputs(d.tangents, "tangents");
  given.check_outputs(d.outer, "grads");
  given.check_outputs(d.outer_tangents, "grad_tangents");
  given.check_output(kept.output);
  if (a.layout.lengths || a.layout.resets) {
    if (!sequences->placed) return recurrent_tangent(without_layout(a), d, kept, outputs, wanted);
    const PackedCall call(a, form, *sequences);
    const Tensors along = call.inputs(d.tangents), outer = call.outputs(d.outer),
                  outer_tangents = call.outputs(d.outer_tangents);
    Tensors results = recurrent_tangent(call.arguments(), {along, outer, outer_tangents},
                                        {call.rows(kept.output), at::Tensor()}, outputs, wanted);
    const size_t first = outputs ? a.options.outputs() : 0;
    for (size_t i = 0; i < first; ++i)
      results[i] = call.output_back(results[i], i, i > 0 && i <= a.hx.size() ? d.tangents[i] : at::Tensor());
    for (size_t i = 0; i < wanted.size(); ++i) {
      at::Tensor& t = results[first + i];
      t = call.input_back(t, wanted[i], of_state(d.outer_tangents, size_t(wanted[i])));
    }
    return results;
  }
  const Canonical call(a, form, sequences);
  const size_t inputs = d.tangents.size(), weights = size_t(a.options.directions * kSlots);
  LayerTensors along{call.wide(call.sequence(d.tangents[0])), {}, {}, Tensors(weights)};
  for (size_t i = 1; i < inputs; ++i) {
    const at::Tensor t = call.wide(d.tangents[i]);
    const size_t place = place_of(a, int64_t(i));
    (place == 1   ? along.h0
     : place == 2 ? along.c0
                  : along.weights[place - 3]) = place < 3 ? call.states(t) : t;
  }
  Wanted is_wanted(3 + weights);
  for (const int64_t index : wanted) is_wanted[place_of(a, index)] = true;
  const Inputs in = call.inputs(a);
  const at::Tensor y = call.output(kept.output);
  const bool takes_tape = kept.tape.defined() && tapes_for_tangents(a);
  if (takes_tape) check_tape(a, call.form, kept.tape);
  const LayerTangents found =
      layer_tangents(in, y, takes_tape ? kept.tape : at::Tensor(), call.outputs(d.outer),
                     call.outputs(d.outer_tangents), along, is_wanted);
  Tensors results;
  const at::ScalarType type = state_type(a);
  const auto give = [&](const at::Tensor& t, at::IntArrayRef sizes, at::ScalarType as_type) {
    results.push_back(t.defined() ? as(t, as_type).reshape(sizes)
                                  : at::zeros(sizes, a.input.options().dtype(as_type)));
  };
  // Laid out by steps, as all sequences are.
  const auto give_sequence = [&](const at::Tensor& t, at::DimVector sizes, at::ScalarType as_type) {
    if (call.order.transposed) std::swap(sizes[0], sizes[1]);
    give(t, sizes, as_type);
    results.back() = call.order(results.back());
  };
  if (outputs) {
    if (!a.options.step) give_sequence(found.outputs.y, at::DimVector(kept.output.sizes()), type);
    give(found.outputs.hn, final_sizes(a, call.form, *call.sequences, 0), type);
    if (a.options.states() > 1) give(found.outputs.cn, final_sizes(a, call.form, *call.sequences, 1), type);
    if (a.options.cells) {
      at::DimVector sizes(a.input.sizes());
      sizes.back() = a.options.directions * call.form.hidden;
      give_sequence(found.outputs.cells, sizes, type);
    }
  }
  for (const int64_t index : wanted) {
    const size_t place = place_of(a, index);
    const LayerTensors& g = found.gradients;
    if (place == 0) {
      give_sequence(g.x, at::DimVector(a.input.sizes()), a.input.scalar_type());
    } else if (place < 3) {
      give(place == 1 ? g.h0 : g.c0, a.hx[place - 1].sizes(), type);
    } else {
      const at::Tensor& like = a.params[size_t(index) - 1 - a.hx.size()];
      give(g.weights.empty() ? at::Tensor() : g.weights[place - 3], like.sizes(), like.scalar_type());
    }
  }
  return results;
}

Tensors recurrent_gate_gradients(const Arguments& a, at::TensorList outer, const at::Tensor& output) {
  const Form form = check(a);
  const auto sequences = sequences_of(a, form);
  const BeyondGradients given(a, form, *sequences);
  given.check_outputs(outer, "grads");
  given.check_output(output);
  if (a.layout.lengths || a.layout.resets) {
    if (!sequences->placed) return recurrent_gate_gradients(without_layout(a), outer, output);
    const PackedCall call(a, form, *sequences);
    Tensors results = recurrent_gate_gradients(call.arguments(), call.outputs(outer), call.rows(output));
    for (at::Tensor& t : results) t = call.rows_back_by_steps(t);
    return results;
  }
  const Canonical call(a, form, sequences);
  const Inputs in = call.inputs(a);
  const at::Tensor y = call.output(output);
  const GateGradients found = gate_gradients(in, y, call.outputs(outer));
  Tensors results;
  for (const GateGradients::Direction& d : found.directions) {
    results.push_back(d.input);
    results.push_back(d.recurrent.is_same(d.input) ? d.recurrent.clone() : d.recurrent);
    results.push_back(d.h_before);
    if (a.options.projected) results.push_back(d.unprojected), results.push_back(d.projected);
  }
  for (at::Tensor& t : results) {
    t = as(t, a.input.scalar_type());
    // No part of another tensor: an operator's results have memory of their own.
    if (!t.is_contiguous() || t.storage_offset() != 0 || t.nbytes() != t.storage().nbytes())
      t = t.clone(at::MemoryFormat::Contiguous);
  }
  return results;
}

void check_call(const std::string& layer, const at::Tensor& input, at::TensorList hx, at::TensorList params,
                const Layout& layout) {
  check({layer_options(layer), input, hx, params, layout});
}

std::vector<std::string> cell_names() {
  std::vector<std::string> names;
  for (const CellInfo& info : cpu::kernels().f32->info) names.emplace_back(info.name);
  return names;
}

std::string isa() { return cpu::kernels().isa; }

int64_t terms_at_once(at::ScalarType type) {
  if (type == at::kChar) return cpu::terms_at_once<Int8>();
  return for_dtype(type, [](auto scalar) { return cpu::terms_at_once<decltype(scalar)>(); });
}

std::pair<int64_t, bool> scarcity() { return {Scarcity::losses(), Scarcity::is_now()}; }

std::vector<std::string> available_isas() { return cpu::available_isas(); }

std::tuple<std::string, int, int, int, int> describe_plan(const std::string& cell, int64_t steps,
                                                          int64_t batch, int64_t input, int64_t hidden,
                                                          int64_t output, int64_t layers, int64_t directions,
                                                          at::ScalarType type) {
  TORCH_CHECK_VALUE(directions == 1 || directions == 2, "directions: expected 1 or 2, got ", directions);
  const SequenceShape shape{steps, batch, input, hidden, output, nullptr, false};
  const Plan plan = for_dtype(type, [&](auto scalar) {
    return cpu::plan<decltype(scalar)>(cell_id(cell), shape, int(layers), int(directions), threads_allowed(),
                                       false);
  });
  return {mode_of(plan), plan.groups, plan.members, plan.shards, plan.wave};
}

}  // namespace rnnfused
