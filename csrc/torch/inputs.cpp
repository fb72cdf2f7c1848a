#include "torch/inputs.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/dispatch.h"
#include "torch/gpu.h"
#include "torch/memory.h"

namespace rnnfused {

at::Tensor tensor_of(const std::vector<Index>& values, const c10::Device& device) {
  const at::Tensor t = at::empty({Index(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.mutable_data_ptr<Index>());
  return t.to(device);
}

at::Tensor on_host(const at::Tensor& t, const char* name) {
  if (!t.device().is_cpu()) return t.to(at::kCPU).contiguous();
  check_memory(t, name);
  return t.contiguous();
}

Index whole_vectors(at::ScalarType type, Index units) {
  const Index lanes = type == at::kDouble ? cpu::kernels().f64->lanes : cpu::kernels().f32->lanes;
  return (units + lanes - 1) / lanes * lanes;
}

namespace {

// A part of one of the caller's sequences, which the kernels run as one of theirs.
struct Part {
  Index sequence, before, place, steps;  // before: steps of the sequence; place: of its first row
  bool first, last;                      // whether its ends are the sequence's, and no reset is there
};

}  // namespace

Sequences::Sequences(const Arguments& a, const Form& form, bool on_device) {
  if (form.order == RowOrder::packed) {
    read_batch_sizes(a, form, on_device);
    return;
  }
  callers_batch = numbered_batch = form.batch.expect_int();
  const bool masked = on_device && form.padded();
  if ((a.layout.lengths || a.layout.resets) && !masked) {
    place(a, form);
    return;
  }
  pad(form.steps.expect_int());
}

void Sequences::read_batch_sizes(const Arguments& a, const Form& form, bool on_device) {
  const at::Tensor& given = *a.layout.batch_sizes;
  TORCH_CHECK(given.device().is_cpu(), "batch_sizes: expected a one-dimensional int64 tensor on the CPU");
  const at::Tensor sizes = on_host(given, "batch_sizes");
  const Index* n = sizes.const_data_ptr<Index>();
  steps = sizes.numel();
  TORCH_CHECK(steps > 0, "batch_sizes: expected at least one step, got none");
  batch = callers_batch = n[0];
  numbered_batch = a.numbered ? a.numbered->callers_batch : batch;
  if (a.numbered) numbers = a.numbered->numbers;
  offsets.reserve(size_t(steps) + 1);
  offsets.push_back(0);
  for (Index t = 0; t < steps; ++t) {
    TORCH_CHECK(n[t] >= 0 && n[t] <= (t ? n[t - 1] : n[t]),
                "batch_sizes: expected sizes that never grow, got ", n[t], " after ", t ? n[t - 1] : 0);
    offsets.push_back(offsets.back() + n[t]);
    for (Index b = 0; a.options.drawn && !a.numbered && !on_device && b < n[t]; ++b)
      numbers.push_back(t * batch + b);
  }
  TORCH_CHECK(offsets.back() == a.input.size(0), "batch_sizes: expected a sum of ", a.input.size(0),
              " (the rows of input), got ", offsets.back());
  if (a.hx.empty() || form.batch == batch) return;
  const c10::SymInt expected[] = {a.options.layers * a.options.directions, batch, form.output};
  refuse_state(a.options, 0, expected, a.hx[0].sym_sizes());
}

void Sequences::place(const Arguments& a, const Form& form) {
  const Index rows = form.rows.expect_int(), most = form.steps.expect_int(), B = callers_batch;
  const bool concatenated = form.order == RowOrder::concatenated;
  const bool by_sequence = concatenated || (form.batched && a.options.batch_first);
  at::Tensor lengths, resets;
  if (a.layout.lengths) lengths = on_host(*a.layout.lengths, "lengths").to(at::kLong);
  if (a.layout.resets) resets = on_host(*a.layout.resets, "resets");
  const Index* const n = lengths.defined() ? lengths.const_data_ptr<Index>() : nullptr;
  const bool* const reset = resets.defined() ? resets.const_data_ptr<bool>() : nullptr;
  // From a step of a sequence to the next.
  const Index stride = by_sequence ? 1 : B;

  Index held = 0;
  for (Index b = 0; b < B; ++b) {
    const Index length = n ? n[b] : most;
    TORCH_CHECK(length >= 0 && length <= most, "lengths: expected lengths from 0 to ", most, ", got ",
                length);
    TORCH_CHECK(held <= rows - length, "lengths: expected a sum of ", rows, " (the rows of input), got more");
    held += length;
  }
  TORCH_CHECK(!concatenated || held == rows, "lengths: expected a sum of ", rows,
              " (the rows of input), got ", held);
  // At once, so that sizes beyond all memory fail before there is work on them.
  beyond.reserve(size_t(rows - held));
  places.reserve(size_t(held));
  std::vector<Part> parts;
  parts.reserve(size_t(B));
  Index start = 0;  // of the sequence's rows
  for (Index b = 0; b < B; ++b) {
    const Index length = n ? n[b] : most;
    if (!concatenated) start = by_sequence ? b * most : b;
    const bool* const cut = reset ? reset + start : nullptr;
    if (length == 0) empty.push_back(b);
    for (Index t = 0; t < length;) {
      Index end = t + 1;
      while (end < length && !(cut && cut[end * stride])) ++end;
      parts.push_back({b, t, start + t * stride, end - t, t == 0 && !(cut && cut[0]), end == length});
      t = end;
    }
    for (Index t = length; !concatenated && t < most; ++t) beyond.push_back(start + t * stride);
    if (concatenated) start += length;
  }
  batch = Index(parts.size());
  placed = by_sequence || batch != B || !std::all_of(parts.begin(), parts.end(), [&](const Part& part) {
             return part.steps == most && part.first && part.last;
           });
  if (!placed) return pad(most);

  // Longest first, and else in the order in which they came: how many have so many steps, and then where the
  // first of them goes.
  std::vector<Index> place_of(size_t(most) + 1);
  for (const Part& part : parts) ++place_of[size_t(part.steps)];
  for (Index steps_of = most, before = 0; steps_of >= 0; --steps_of)
    before += std::exchange(place_of[size_t(steps_of)], before);
  std::vector<Index> first_rows(parts.size()), first_numbers(parts.size());
  const bool both = a.options.directions > 1;
  for (int d = 0; d <= int(both); ++d) initial[d].resize(parts.size()), final[d].resize(parts.size());
  steps = 1;
  for (const Part& part : parts) {
    const size_t at = size_t(place_of[size_t(part.steps)]++);
    const Index first = part.first ? part.sequence : -1, last = part.last ? part.sequence : -1;
    first_rows[at] = part.place;
    first_numbers[at] = part.before * B + part.sequence;
    initial[0][at] = first, final[0][at] = last;
    if (both) initial[1][at] = last, final[1][at] = first;
    steps = std::max(steps, part.steps);
  }
  // By now place_of says how many have at least so many steps.
  places.resize(size_t(held));
  offsets.reserve(size_t(steps) + 1);
  Index* next = places.data();
  for (Index t = 0; t < steps; ++t) {
    offsets.push_back(next - places.data());
    const Index active = t < most ? place_of[size_t(t) + 1] : 0;
    for (Index i = 0; i < active; ++i) *next++ = first_rows[size_t(i)] + t * stride;
    for (Index i = 0; a.options.drawn && i < active; ++i) numbers.push_back(first_numbers[size_t(i)] + t * B);
  }
  offsets.push_back(next - places.data());
}

void Sequences::pad(Index most) {
  steps = most;
  batch = callers_batch;
  offsets.reserve(size_t(steps) + 1);
  for (Index t = 0; t <= steps; ++t) offsets.push_back(t * batch);
}

at::Tensor dense(const at::Tensor& t, const char* name) {
  check_memory(t, name);
  return (t.is_neg() ? t.resolve_neg() : t).contiguous();
}

at::Tensor dense_computed(const at::Tensor& t, const char* name) {
  const at::Tensor plain = dense(t, name);
  const at::ScalarType type = compute_type(plain.scalar_type());
  return plain.scalar_type() == type ? plain : plain.to(type);
}

namespace {

// ---- Weights as the drivers of layers with options read them (core/staged.h), and gradients back

// Those that have a row for every unit of every gate; the IndRNN's W_hh is a vector of the units.
bool has_gates(const LayerOptions& o, int slot) {
  return slot <= kBiasHh && !(slot == kWeightHh && !o.multiplies());
}
bool has_heads(const LayerOptions& o, int slot) { return slot == kWeightHh && o.num_heads > 1; }

// The blocks [heads, gates, H / k, H / k] of a matrix of G H rows that is zero between heads.
at::Tensor blocks_of_heads(const at::Tensor& matrix, const LayerOptions& o) {
  const Index each = matrix.size(1) / o.num_heads;
  return matrix.view({o.info.gates, o.num_heads, each, o.num_heads, each})
      .diagonal(0, 1, 3)
      .permute({3, 0, 1, 2});
}

// With rows of each gate in whole vectors; heads [k, G H / k, H / k] as one matrix.
at::Tensor staged(const LayerOptions& o, int slot, const at::Tensor& weight, Index unit_scalars) {
  if (!weight.defined() || !has_gates(o, slot)) return weight;
  at::Tensor whole = weight;
  if (has_heads(o, slot)) {
    const Index each = weight.size(2);
    whole = at::zeros({o.info.gates * o.num_heads * each, o.num_heads * each}, weight.options());
    blocks_of_heads(whole, o).copy_(weight.view({o.num_heads, o.info.gates, each, each}));
  }
  const Index hidden = whole.size(0) / o.info.gates;
  if (hidden == unit_scalars) return whole;
  const at::Tensor by_gate = whole.view({o.info.gates, hidden, -1});
  const at::Tensor padded = at::constant_pad_nd(by_gate, {0, 0, 0, unit_scalars - hidden});
  return weight.dim() == 1 ? padded.flatten() : padded.flatten(0, 1);
}

// Of the gradient of what that made: that of the weight.
at::Tensor unstaged(const LayerOptions& o, int slot, const at::Tensor& gradient, Index hidden) {
  if (!has_gates(o, slot)) return gradient;
  at::Tensor own = gradient;
  if (own.size(0) != o.info.gates * hidden) {
    own = own.unflatten(0, {o.info.gates, -1}).narrow(1, 0, hidden).contiguous().flatten(0, 1);
  }
  return has_heads(o, slot) ? blocks_of_heads(own, o).contiguous().flatten(1, 2) : own;
}

}  // namespace

Inputs::Inputs(const Arguments& a, const Form& form, std::shared_ptr<const Sequences> of, int64_t index,
               const at::Tensor& input, bool computed)
    : options(a.options),
      cell(a.options.cell),
      info(a.options.info),
      on_gpu(gpu::serves(a.input.device())),
      directions(a.options.directions),
      cells(a.options.cells && index + 1 == a.options.layers),
      sequences(std::move(of)),
      rows(form.rows.expect_int()) {
  shape = {};
  shape.steps = sequences->steps;
  shape.batch = sequences->batch;
  shape.input = index ? directions * form.output : form.input;
  shape.hidden = form.hidden;
  shape.output = form.output;
  shape.offsets = sequences->offsets.data();
  const auto read = computed ? dense_computed : dense,
             read_by_unit = computed || !on_gpu ? dense_computed : dense;
  x = read(input, "input");
  if (on_gpu && form.padded()) {
    const bool by_sequence = a.options.batch_first && form.batched;
    if (a.layout.lengths) lengths = a.layout.lengths->to(x.options().dtype(at::kLong)).contiguous();
    if (a.layout.resets) resets = (by_sequence ? a.layout.resets->t() : *a.layout.resets).contiguous();
  }
  if (on_gpu && a.options.drawn && a.numbered) numbers = tensor_of(sequences->numbers, x.device());
  const auto state = [&](int s, const char* name) {
    if (a.hx.empty()) return on_gpu ? at::zeros(state_sizes(s), x.options()) : at::Tensor();
    const at::Tensor& all = a.hx[size_t(s)];
    const bool whole = a.options.layers == 1;
    const at::Tensor own = read_by_unit(whole ? all : all.narrow(0, index * directions, directions), name);
    // A GPU's products read h as they read x, whatever type the caller keeps it in.
    return on_gpu && !computed && s == 0 ? own.to(x.scalar_type()) : own;
  };
  h0 = state(0, "h0");
  if (info.states > 1) c0 = state(1, "c0");
  weights.resize(size_t(directions * kSlots));
  auto next = a.params.begin() + ptrdiff_t(a.options.params_each()) * index * directions;
  static const char* const names[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"};
  const auto take_scale = [&](const char* name, bool present) {
    scales.push_back(present ? dense(*next++, name) : at::Tensor());
  };
  for (int d = 0; d < directions; ++d) {
    for (const int slot : a.options.slots) {
      const bool is_matrix = is_matrix_slot(slot);
      weights[size_t(d * kSlots + slot)] =
          (is_matrix ? read : read_by_unit)(*next++, slot <= kWeightHr ? names[slot] : "params");
    }
    if (!a.options.int8) continue;
    take_scale("scale_ih", true), take_scale("scale_hh", true), take_scale("scale_hr", a.options.projected);
  }
  if (options.varied && !computed) {
    unit_scalars = on_gpu ? shape.hidden : whole_vectors(x.scalar_type(), shape.hidden);
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] = staged(options, int(i % kSlots), weights[i], unit_scalars);
  }
  if (!a.options.drawn) return;
  seed = on_host(a.params.back(), "seeds").const_data_ptr<int64_t>()[index];
}

at::Tensor as_given(const Inputs& in, size_t weight, const at::Tensor& gradient) {
  return unstaged(in.options, int(weight % kSlots), gradient, in.shape.hidden);
}

at::Tensor Inputs::empty(at::IntArrayRef sizes) const {
  return on_gpu ? at::empty(sizes, x.options()) : empty(sizes, x.scalar_type());
}

at::Tensor Inputs::empty_computed(at::IntArrayRef sizes) const {
  return on_gpu ? at::empty(sizes, x.options()) : empty(sizes, compute_type(x.scalar_type()));
}

at::Tensor Inputs::empty_gradient(size_t weight) const {
  const bool one_sum = is_matrix_slot(int(weight % kSlots)) && shape.rows() <= kRowsSummedAtOnce;
  const at::IntArrayRef sizes = weights[weight].sizes();
  return one_sum ? empty(sizes) : empty_computed(sizes);
}

at::Tensor Inputs::empty(at::IntArrayRef sizes, at::ScalarType type) const {
  // Past the dispatcher, whose share of a call of one step shows.
  at::Tensor result = at::detail::empty_generic(
      sizes, result_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU), type, std::nullopt);
  // As at::empty does, so that a number that was never written shows; by this thread, since a forked process
  // has no other.
  const at::Context& context = at::globalContext();
  const bool fills = context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
  if (fills && result.nbytes() > 0)
    std::memset(result.mutable_data_ptr(), 0xff, result.nbytes());  // NaN in every type
  return result;
}

at::DimVector Inputs::output_sizes(Index units) const {
  at::DimVector sizes(x.sizes());
  sizes.back() = directions * units;
  return sizes;
}

at::DimVector Inputs::state_sizes(int state) const {
  return {directions, sequences->callers_batch,
          state == 0 ? shape.output : options.second_state(shape.hidden)};
}

}  // namespace rnnfused
