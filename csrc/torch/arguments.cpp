#include "torch/arguments.h"

#include <c10/util/Exception.h>

#include <iterator>
#include <sstream>

#include "cpu/dispatch.h"
#include "torch/gpu.h"

namespace rnnfused {
namespace {

// Of a tensor without memory the keys say for which device it stands.
bool is_on_gpu(const at::Tensor& t) {
  return gpu::serves(t.device()) || t.key_set().has_backend(c10::BackendComponent::CUDABit);
}

using Symbols = std::initializer_list<c10::SymInt>;

const char* const kStates[] = {"h", "c"};
const char* const kWeights[] = {"weight_ih",      "weight_hh",       "bias_ih",        "bias_hh",
                                "weight_hr",      "weight_peephole", "norm_ih_weight", "norm_ih_bias",
                                "norm_hh_weight", "norm_hh_bias",    "norm_c_weight",  "norm_c_bias",
                                "scale_ih",       "scale_hh",        "scale_hr"};
static_assert(std::size(kWeights) == kSlots + kScaleSlots);

bool is_narrow(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

std::string torch_name(at::ScalarType type) { return "torch." + std::string(c10::getDtypeNames(type).first); }

// (1, 2, 3), as Python prints a tuple, or [1, 2, 3], a list.
std::string joined(c10::SymIntArrayRef sizes, const char* brackets) {
  std::ostringstream text;
  text << brackets[0];
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << brackets[1];
  return text.str();
}

bool sizes_are(const at::Tensor& t, Symbols sizes) {
  return t.sym_sizes() == c10::SymIntArrayRef(sizes.begin(), sizes.size());
}

void check_dimensions(const Arguments& a, const Form& form) {
  const LayerOptions& o = a.options;
  const int64_t dim = a.input.dim();
  if (!form.padded()) {
    TORCH_CHECK(dim == 2, "input must have 2 dimensions, got ", dim);
    return;
  }
  const int few = o.step ? 1 : 2;
  TORCH_CHECK_VALUE(dim == few || dim == few + 1, o.kind, ": Expected input to be ", few, "D or ", few + 1,
                    "D, got ", dim, o.kind == "RNN" ? "D tensor instead" : "D instead");
}

void check_state_dimensions(const Arguments& a, const Form& form) {
  const LayerOptions& o = a.options;
  TORCH_CHECK(a.hx.empty() || a.hx.size() == o.states(), "hx: expected ", o.states(),
              o.states() > 1 ? " states (h, c), got " : " state (h), got ", a.hx.size());
  if (a.hx.empty() || form.order == RowOrder::packed) return;
  if (o.step) {
    for (size_t s = 0; s < a.hx.size(); ++s) {
      const int64_t dim = a.hx[s].dim();
      TORCH_CHECK_VALUE(dim == 1 || dim == 2, o.kind, ": Expected ",
                        o.states() > 1 ? "hx[" + std::to_string(s) + "]" : "hidden", " to be 1D or 2D, got ",
                        dim, "D instead");
    }
    return;
  }
  const int64_t dim = form.batched ? 3 : 2;
  const char* const batched = form.batched ? "batched" : "unbatched";
  if (o.states() > 1) {
    TORCH_CHECK(a.hx[0].dim() == dim && a.hx[1].dim() == dim, "For ", batched, " ", dim,
                "-D input, hx and cx should also be ", dim, "-D but got (", a.hx[0].dim(), "-D, ",
                a.hx[1].dim(), "-D) tensors");
  } else {
    TORCH_CHECK(a.hx[0].dim() == dim, "For ", batched, " ", dim, "-D input, hx should also be ", dim,
                "-D but got ", a.hx[0].dim(), "-D tensor");
  }
}

// That there are as many parameters as there should be, and what the first of them say of all sizes.
void read_weights(const Arguments& a, Form& form) {
  const LayerOptions& o = a.options;
  TORCH_CHECK_VALUE(a.params.size() == o.params(), "params: expected ", o.params(), " tensors (",
                    o.params_each(), " for each of ", o.layers * o.directions, o.drawn ? ", and seeds" : "",
                    "), got ", a.params.size());
  const at::Tensor& w_ih = a.params[0];
  const auto size = [](const at::Tensor& t, int64_t d) {
    return t.sym_size(d).guard_int(__FILE__, __LINE__);
  };
  TORCH_CHECK(w_ih.dim() == 2, kWeights[0], ": expected 2 dimensions, got ", w_ih.dim());
  if (o.own_maths && *o.own_maths >= Maths::indrnn && o.own_maths != Maths::ligru) {
    TORCH_CHECK(size(w_ih, 0) % o.info.gates == 0, kWeights[0], ": expected size [", o.info.gates,
                " * hidden_size, input_size], got ", w_ih.sym_sizes());
    form.input = size(w_ih, 1);
    form.output = form.hidden = size(w_ih, 0) / o.info.gates;
    return;
  }
  const at::Tensor& w_hh = a.params[1];
  if (o.num_heads > 1) {
    TORCH_CHECK(w_hh.dim() == 3 && size(w_hh, 0) == o.num_heads && size(w_hh, 1) % o.info.gates == 0,
                kWeights[1], ": expected size [", o.num_heads, ", ", o.info.gates,
                " * head_size, head_size], got ", w_hh.sym_sizes());
  } else {
    TORCH_CHECK(w_hh.dim() == 2 && size(w_hh, 0) % o.info.gates == 0, kWeights[1], ": expected size [",
                o.info.gates, " * hidden_size, ", o.projected ? "proj_size" : "hidden_size", "], got ",
                w_hh.sym_sizes());
  }
  form.input = size(w_ih, 1) + o.attends();
  form.hidden = o.num_heads * size(w_hh, -2) / o.info.gates;
  form.output = o.projected ? o.num_heads * size(w_hh, -1) : form.hidden;
  TORCH_CHECK(!o.projected || form.output < form.hidden, "weight_hr: expected a projection to fewer than ",
              form.hidden, " units (hidden_size), got ", form.output);
  for (const Index columns : {form.input, form.output, o.projected ? form.hidden : 0})
    TORCH_CHECK(!o.int8 || columns <= kMostInt8Terms, "params: expected at most ", kMostInt8Terms,
                " columns of 8 bits, got ", columns);
}

void check_types(const Arguments& a) {
  const LayerOptions& o = a.options;
  const at::ScalarType type = a.input.scalar_type(), weights = a.params[0].scalar_type();
  if (o.int8) {
    TORCH_CHECK(type == at::kFloat, "input: expected dtype torch.float32 with weights of 8 bits, got ",
                torch_name(type));
    TORCH_CHECK((a.input.device().is_cpu() && !is_on_gpu(a.input)) || a.input.device().is_meta(),
                "input: expected a tensor on the CPU with weights of 8 bits, got ", a.input.device());
    return;
  }
  // torch leaves it to the product of cells, and of its LSTM on packed rows.
  if (type != weights && (o.step || (a.layout.batch_sizes && o.states() > 1))) {
    TORCH_CHECK(false, "mat1 and mat2 must have the same dtype, but got ", type, " and ", weights);
  }
  TORCH_CHECK_VALUE(type == weights, "RNN input dtype (", torch_name(type), ") does not match weight dtype (",
                    torch_name(weights), "). Convert input: input.to(", torch_name(weights),
                    "), or convert model: model.to(", torch_name(type), ")");
  check_input(a.input);
}

void set_sizes(const Arguments& a, Form& form) {
  const LayerOptions& o = a.options;
  const at::Tensor& x = a.input;
  const c10::SymInt features = x.sym_size(-1);
  if (o.step) {
    TORCH_CHECK(features == form.input, "input has inconsistent input_size: got ", features, " expected ",
                form.input);
  } else {
    TORCH_CHECK(features == form.input, "input.size(-1) must be equal to input_size. Expected ", form.input,
                ", got ", features);
  }
  if (form.order == RowOrder::concatenated) {
    form.rows = form.steps = x.sym_size(0);
    form.batch = a.layout.lengths->sym_size(0);
    return;
  }
  if (form.order == RowOrder::packed) {
    const at::Tensor& sizes = *a.layout.batch_sizes;
    TORCH_CHECK(sizes.scalar_type() == at::kLong && sizes.dim() == 1,
                "batch_sizes: expected a one-dimensional int64 tensor on the CPU");
    form.rows = x.sym_size(0);
    form.steps = sizes.sym_size(0);
    form.batch = a.hx.empty() || a.hx[0].dim() != 3 ? c10::SymInt(0) : a.hx[0].sym_size(1);
    return;
  }
  const int batch_dim = o.step || o.batch_first ? 0 : 1;
  form.batch = form.batched ? x.sym_size(batch_dim) : c10::SymInt(1);
  form.steps = o.step ? c10::SymInt(1) : x.sym_size(form.batched ? 1 - batch_dim : 0);
  TORCH_CHECK(form.steps != 0, "Expected sequence length to be larger than 0 in RNN");
  form.rows = form.steps * form.batch;
}

void check_layout(const Arguments& a, const Form& form) {
  const auto& [batch_sizes, lengths, resets] = a.layout;
  if (lengths) {
    TORCH_CHECK(at::isIntegralType(lengths->scalar_type(), /*includeBool=*/false),
                "lengths: expected an integer dtype, got ", torch_name(lengths->scalar_type()));
    TORCH_CHECK(sizes_are(*lengths, {form.batch}), "lengths: expected size [", form.batch,
                "], one for each sequence, got ", lengths->sym_sizes());
  }
  if (!resets) return;
  const at::Tensor& x = a.input;
  TORCH_CHECK(resets->device() == x.device(), "resets: expected a tensor on ", x.device(), ", got ",
              resets->device());
  TORCH_CHECK(resets->scalar_type() == at::kBool, "resets: expected dtype torch.bool, got ",
              torch_name(resets->scalar_type()));
  const c10::SymIntArrayRef expected = x.sym_sizes().slice(0, size_t(x.dim()) - 1);
  TORCH_CHECK(resets->sym_sizes() == expected, "resets: expected size ", expected,
              ", one for each step of each sequence, got ", resets->sym_sizes());
}

// What says where the sequences are, of which not everything goes together.
RowOrder row_order(const Arguments& a) {
  const auto& [batch_sizes, lengths, resets] = a.layout;
  const bool step = a.options.step, packed = batch_sizes.has_value();
  TORCH_CHECK(!packed || !step, "batch_sizes: expected none, since a cell runs one step");
  TORCH_CHECK(!lengths || !step, "lengths: expected none, since a cell runs one step");
  TORCH_CHECK(!resets || !step, "resets: expected none, since a cell runs one step");
  TORCH_CHECK(!lengths || !packed, "lengths: expected none with a PackedSequence, which has its own");
  TORCH_CHECK(!resets || !packed,
              "resets: expected none with a PackedSequence (give a padded input with lengths instead)");
  if (packed) return RowOrder::packed;
  if (!lengths) return RowOrder::padded;
  TORCH_CHECK(lengths->dim() == 1, "lengths: expected 1 dimension, got ", lengths->dim());
  return a.input.dim() == 2 ? RowOrder::concatenated : RowOrder::padded;
}

void check_states(const Arguments& a, const Form& form) {
  const LayerOptions& o = a.options;
  const Index units[] = {form.output, o.second_state(form.hidden)};
  for (size_t s = 0; s < a.hx.size(); ++s) {
    const at::Tensor& state = a.hx[s];
    TORCH_CHECK(state.device() == a.input.device(),
                "Input and hidden tensors are not at the same device, found input tensor at ",
                a.input.device(), " and hidden tensor at ", state.device());
    const at::ScalarType type = state.scalar_type(), wide = compute_type(a.input.scalar_type());
    TORCH_CHECK(type == a.hx[0].scalar_type() && (type == a.input.scalar_type() || type == wide), kStates[s],
                "0: expected dtype ", a.input.scalar_type(), ", got ", type);
    if (o.step && form.batched) {
      TORCH_CHECK(state.sym_size(0) == form.batch, "Input batch size ", form.batch, " doesn't match hidden",
                  s, " batch size ", state.sym_size(0));
    }
    if (o.step) {
      TORCH_CHECK(state.sym_size(-1) == units[s], "hidden", s, " has inconsistent hidden_size: got ",
                  state.sym_size(-1), ", expected ", units[s]);
      TORCH_CHECK(state.dim() == a.input.dim(), "hidden", s, ": expected ", a.input.dim(),
                  " dimensions, as the input has, got ", state.dim());
      continue;
    }
    const c10::SymInt parts = o.layers * o.directions;
    const bool fits =
        form.batched ? sizes_are(state, {parts, form.batch, units[s]}) : sizes_are(state, {parts, units[s]});
    if (fits) continue;
    const c10::SymInt expected[] = {parts, form.batch, units[s]};
    c10::SymDimVector got(state.sym_sizes());
    if (!form.batched) got.insert(got.begin() + 1, 1);  // torch adds the batch before it checks
    refuse_state(o, s, expected, got);
  }
}

void check_weights(const Arguments& a, const Form& form) {
  const LayerOptions& o = a.options;
  const c10::SymInt gates = o.info.gates * form.hidden;
  auto next = a.params.begin();
  for (int64_t layer = 0; layer < o.layers; ++layer) {
    const Index input = layer ? o.directions * form.output : form.input;
    for (int direction = 0; direction < o.directions; ++direction) {
      const auto take = [&](int slot, Symbols sizes) {
        const at::Tensor& w = *next++;
        TORCH_CHECK(w.device() == a.input.device(),
                    "Input and parameter tensors are not at the same device, found input tensor at ",
                    a.input.device(), " and parameter tensor at ", w.device());
        const bool is_matrix = is_matrix_slot(slot);
        const at::ScalarType type = o.int8 && is_matrix ? at::kChar : a.input.scalar_type();
        const bool same_type = w.scalar_type() == type;
        if (same_type && sizes_are(w, sizes)) return;
        const std::string place = o.step ? "" : "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
        const std::string name =
            o.gate_norm == GateNorm::joint && (slot == kNormIhWeight || slot == kNormIhBias)
                ? (slot == kNormIhWeight ? "norm_weight" : "norm_bias")
                : kWeights[slot];
        TORCH_CHECK(same_type, name, place, ": expected dtype ", type, ", got ", w.scalar_type());
        TORCH_CHECK(false, name, place, ": expected size ", c10::SymIntArrayRef(sizes.begin(), sizes.size()),
                    ", got ", w.sym_sizes());
      };
      for (const int slot : o.slots) {
        switch (slot) {
          case kWeightIh:
            take(slot, {gates, input - o.attends()});
            break;
          case kWeightHh:
            if (o.own_maths == Maths::indrnn) {
              take(slot, {form.hidden});
            } else if (o.num_heads > 1) {
              const c10::SymInt heads = o.num_heads;
              take(slot, {heads, gates / heads, form.output / heads});
            } else {
              take(slot, {gates, form.output});
            }
            break;
          case kWeightHr:
            take(slot, {form.output, form.hidden});
            break;
          case kPeephole:
            take(slot, {o.coupled_gates ? 2 : 3, form.hidden});
            break;
          default:
            take(slot, {slot < kNormCWeight ? gates : c10::SymInt(form.hidden)});
        }
      }
      if (!o.int8) continue;
      take(kSlots, {gates}), take(kSlots + 1, {gates});
      if (o.projected) take(kSlots + 2, {form.output});
    }
  }
  if (!o.drawn) return;
  TORCH_CHECK(next->scalar_type() == at::kLong && sizes_are(*next, {o.layers}),
              "seeds: expected int64 of size [", o.layers, "], one for each layer, got ",
              torch_name(next->scalar_type()), " of size ", next->sym_sizes());
}

}  // namespace

void refuse_state(const LayerOptions& o, size_t state, c10::SymIntArrayRef expected,
                  c10::SymIntArrayRef got) {
  const std::string which = o.states() > 1 ? "[" + std::to_string(state) + "]" : "";
  TORCH_CHECK(false, "Expected hidden", which, " size ", joined(expected, "()"), ", got ", joined(got, "[]"));
}

Form check(const Arguments& a) {
  Form form{};
  form.order = row_order(a);
  form.masked = a.layout.lengths || a.layout.resets;
  check_dimensions(a, form);
  form.batched = !form.padded() || a.input.dim() == (a.options.step ? 2 : 3);
  check_state_dimensions(a, form);
  read_weights(a, form);
  check_types(a);
  set_sizes(a, form);
  check_layout(a, form);
  check_states(a, form);
  check_weights(a, form);
  return form;
}

void check_gradients(const LayerOptions& o) {
  TORCH_CHECK(!o.int8, o.kind, ": weights of 8 bits are for inference, and have no derivative");
}

void check_kernels(const LayerOptions& o, const at::Tensor& x) {
  if (!o.varied) return;
  TORCH_CHECK_VALUE(!o.projected, "layer: a layer with options has no projection, got '", o.text, "'");
  const at::ScalarType type = x.scalar_type();
  const bool wide = type == at::kFloat || type == at::kDouble;
  TORCH_CHECK(wide || is_on_gpu(x), "input: expected dtype float32 or float64 for '", o.text, "', got ",
              torch_name(type));
}

void check_input(const at::Tensor& x) {
  const bool on_gpu = gpu::serves(x.device());
  TORCH_CHECK(x.device().is_cpu() || on_gpu || x.device().is_meta(), "input: expected a tensor on ",
              gpu::places(), ", got ", x.device());
  const at::ScalarType type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || is_narrow(type),
              "input: expected dtype float32, float64, float16 or bfloat16, got ", type);
}

void check_tensor(const at::Tensor& t, const char* name, const c10::Device& device, at::ScalarType type,
                  c10::SymIntArrayRef sizes) {
  TORCH_CHECK(t.device() == device, name, ": expected a tensor on ", device, ", got ", t.device());
  TORCH_CHECK(t.scalar_type() == type, name, ": expected dtype ", type, ", got ", t.scalar_type());
  TORCH_CHECK(t.sym_sizes() == sizes, name, ": expected size ", sizes, ", got ", t.sym_sizes());
}

void check_memory(const at::Tensor& t, const char* name) {
  if (t.numel() == 0) return;
  TORCH_CHECK(t.layout() == at::kStrided && t.has_storage(), name,
              ": expected a dense tensor, got one of layout ", t.layout());
  int64_t last = t.storage_offset();
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const c10::Storage& storage = t.storage();
  TORCH_CHECK(storage.data() && size_t(last + 1) * t.itemsize() <= storage.nbytes(), name,
              ": expected a tensor with memory of its own size, got ", storage.data() ? storage.nbytes() : 0,
              " bytes for sizes ", t.sizes());
}

std::vector<c10::SymDimVector> output_sizes(const Arguments& a, const Form& form) {
  const LayerOptions& o = a.options;
  std::vector<c10::SymDimVector> sizes;
  const auto with_features = [&](c10::SymDimVector leading, c10::SymInt features) {
    leading.push_back(std::move(features));
    sizes.push_back(std::move(leading));
  };
  c10::SymDimVector rows(a.input.sym_sizes()), states;
  rows.pop_back();
  if (!o.step) {
    with_features(rows, o.directions * form.output);
    states.push_back(o.layers * o.directions);
  }
  if (form.batched) states.push_back(form.batch);
  with_features(states, form.output);
  if (o.states() > 1) with_features(states, o.second_state(form.hidden));
  if (o.cells) with_features(rows, o.directions * form.hidden);
  return sizes;
}

c10::SymDimVector tape_sizes(const LayerOptions& o, const Form& form, const at::Tensor& input) {
  const auto bytes = Index(c10::elementSize(tape_type(input)));
  return {o.directions, tape_size(o, input).scalars(form.rows, form.hidden, o.recompute, bytes)};
}

TapeSize tape_size(const LayerOptions& o, const at::Tensor& input) {
  TapeSize size = o.tape_size();
  // A GPU's gates of 16 bits (cuda/gates.cuh: GateOf) lie two to a float.
  if (is_on_gpu(input) && is_narrow(input.scalar_type()) && !o.varied) size.gates = (size.gates + 1) / 2;
  return size;
}

at::ScalarType compute_type(at::ScalarType type) { return is_narrow(type) ? at::kFloat : type; }

at::ScalarType tape_type(const at::Tensor& input) {
  return is_on_gpu(input) ? compute_type(input.scalar_type()) : input.scalar_type();
}

at::ScalarType state_type(const Arguments& a) {
  return a.hx.empty() ? a.input.scalar_type() : a.hx[0].scalar_type();
}

}  // namespace rnnfused
