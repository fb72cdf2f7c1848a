// A layer forward and backward through the CUDA drivers, on memory with inaccessible pages around every
// buffer.
#pragma once

#include <cmath>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../varied_options.h"
#include "cuda/drivers.h"
#include "plain_matmul.h"
#include "testing.h"

namespace rnnfused {
namespace cuda {

using emulation::GlobalBuffer;

inline constexpr Type kTypes[] = {Type::f32, Type::f64, Type::f16, Type::bf16};

// Guarded arrays of one problem.
class Buffers {
 public:
  void* bytes(Index n) {
    all_.push_back(std::make_unique<GlobalBuffer<unsigned char>>(size_t(n)));
    return all_.back()->data();
  }
  // Never written: full of NaN.
  void* empty(Type type, Index n) { return bytes(n * bytes_of(type)); }
  void* filled(Type type, Index n) {
    void* data = empty(type, n);
    with_type(type, data, [&](auto* out) {
      using T = std::remove_reference_t<decltype(*out)>;
      for (Index i = 0; i < n; ++i) out[i] = from_double<T>(0.003 * double(++drawn_ % 97 - 48));
    });
    return data;
  }

 private:
  std::vector<std::unique_ptr<GlobalBuffer<unsigned char>>> all_;
  Index drawn_ = 0;
};

// What was asked for: every number of it, by name.
struct Outcome {
  struct Array {
    std::string name;
    std::vector<double> numbers;
  };
  std::vector<Array> arrays;

  void take(const std::string& name, const void* data, Type type, Index n) {
    if (!data) return;
    Array array{name, {}};
    with_type(type, data, [&](const auto* numbers) {
      for (Index i = 0; i < n; ++i) array.numbers.push_back(to_double(numbers[i]));
    });
    arrays.push_back(std::move(array));
  }
  void check_finite() const {
    for (const Array& array : arrays) {
      bool finite = true;
      for (const double number : array.numbers) finite = finite && std::isfinite(number);
      CAPTURE(array.name);
      CHECK(finite);
    }
  }
};

using Options = test::VariedOptions;

struct Problem {
  CellId cell;
  int gates, states;
  Type type;
  std::vector<Index> batch_sizes;
  int directions;
  Index input, hidden, output;
  bool recompute;
  const Options* options = nullptr;
  // Of padded input: whether sequences have lengths of their own, and are cut.
  bool lengths = false, resets = false;
  bool allows_resident = false, allows_tf32 = false;
  bool only_backward = false;  // may be resident

  // Vectors beside h, and whether h enters by a product.
  Index seconds() const { return options ? states - 1 : 1; }
  bool multiplies() const { return !options || rnnfused::multiplies(options->maths); }
};

// Calls body(where a parameter is, its rows of H units) for each that the options bring.
template <class C, class Body>
void for_parameters(const Options& o, VariationParameters<C>& v, Body body) {
  const bool norms = o.gate_norm != GateNorm::none, separate = o.gate_norm == GateNorm::separate;
  const int of_c = o.cell_norm != CellNorm::none;
  body(v.unit, o.maths == Maths::indrnn);
  body(v.peephole, o.peephole * (o.gates - 1));
  body(v.norm_ih_weight, norms * o.gates), body(v.norm_ih_bias, norms * o.gates);
  body(v.norm_hh_weight, separate * o.gates), body(v.norm_hh_bias, separate * o.gates);
  body(v.norm_c_weight, of_c), body(v.norm_c_bias, of_c);
}

// What a layer is told of its options.
template <class C>
struct Variations {
  Variation<C> of[kMaxDirections] = {};
  VariationParameters<C> gradients[kMaxDirections] = {};

  Variations(const Problem& p, Buffers& memory, Layer& layer, BackwardLayer& backward) {
    const Options& o = *p.options;
    for (int d = 0; d < p.directions; ++d) {
      Variation<C>& v = of[d];
      v.maths = o.maths, v.gates = o.gates, v.states = o.states;
      v.hidden = v.unit_scalars = p.hidden;
      v.gate_norm = o.gate_norm, v.cell_norm = o.cell_norm;
      v.gate_clip = v.cell_clip = C(0.9), v.grad_clip = C(2);
      v.zoneout[0] = 0.3, v.zoneout[1] = 0.5, v.recurrent_dropout = 0.4, v.drawn = o.drawn;
      v.seed = 7, v.direction = d, v.batch = p.batch_sizes[0];
      VariationParameters<C> own{};
      for_parameters(o, own, [&](C*& at, Index rows) {
        if (rows) at = static_cast<C*>(memory.filled(compute_type(p.type), rows * p.hidden));
      });
      static_cast<VariationParameters<const C>&>(v) = {
          own.unit,           own.peephole,     own.norm_ih_weight, own.norm_ih_bias,
          own.norm_hh_weight, own.norm_hh_bias, own.norm_c_weight,  own.norm_c_bias};
      for_parameters(o, gradients[d], [&](C*& at, Index rows) {
        if (rows) at = static_cast<C*>(memory.empty(compute_type(p.type), rows * p.hidden));
      });
      layer.variation[d] = &v;
      backward.dvariation[d] = &gradients[d];
    }
  }
  void take(const Problem& p, Outcome& out) {
    for (int d = 0; d < p.directions; ++d) {
      for_parameters(*p.options, gradients[d], [&](C*& at, Index rows) {
        if (rows) out.take("parameter", at, compute_type(p.type), rows * p.hidden);
      });
    }
  }
};

// What forward and backward read alike.
inline Layer layer_of(const Problem& p, Buffers& memory, const std::vector<Index>& offsets) {
  const Index D = p.directions, B = p.batch_sizes[0], I = p.input, H = p.hidden, P = p.output;
  const Index rows = offsets.back(), gate_rows = p.gates * H;
  Layer layer{};
  layer.type = p.type;
  layer.directions = p.directions;
  layer.shape = {Index(p.batch_sizes.size()), B, I, p.options ? gate_rows : H, P, offsets.data(), false};
  layer.x_stride = I + (p.options && attends(p.options->maths));
  layer.x = memory.filled(p.type, rows * layer.x_stride);
  layer.input_weights = memory.filled(p.type, D * gate_rows * I);
  if (p.multiplies()) layer.recurrent_weights = memory.filled(p.type, D * gate_rows * P);
  if (P != H) layer.projection = memory.filled(p.type, D * P * H);
  for (int direction = 0; direction < p.directions; ++direction) {
    layer.input_bias[direction] = memory.filled(p.type, gate_rows);
    layer.bias[direction] = memory.filled(p.type, gate_rows);
  }
  layer.recompute = p.recompute;
  layer.allows_resident = p.allows_resident;
  layer.allows_tf32 = p.allows_tf32;
  if (p.lengths) {
    auto* const lengths = static_cast<Index*>(memory.bytes(B * Index(sizeof(Index))));
    for (Index b = 0; b < B; ++b) lengths[b] = 1 + (b * 5 + 2) % layer.shape.steps;
    layer.lengths = lengths;
  }
  if (p.resets) {
    auto* const resets = static_cast<bool*>(memory.bytes(layer.shape.steps * B));
    for (Index i = 0; i < layer.shape.steps * B; ++i) resets[i] = i % 5 == 3 || i == 0;
    layer.resets = resets;
  }
  return layer;
}

template <class C>
Outcome run(const Problem& p) {
  std::vector<Index> offsets = {0};
  for (const Index n : p.batch_sizes) offsets.push_back(offsets.back() + n);
  const Index D = p.directions, B = p.batch_sizes[0], I = p.input, H = p.hidden, P = p.output;
  const Index rows = offsets.back(), gate_rows = p.gates * H;
  const Type compute = compute_type(p.type);
  const CellDrivers& d = p.options ? varied_drivers(p.type) : drivers(p.cell, p.type);
  Buffers memory;
  PlainMatmul matmul;

  Layer layer = layer_of(p, memory, offsets);
  BackwardLayer backward{};
  Outcome out;
  std::optional<Variations<C>> variations;
  if (p.options) variations.emplace(p, memory, layer, backward);

  ForwardLayer forward{};
  static_cast<Layer&>(forward) = layer;
  forward.allows_resident = p.allows_resident && !p.only_backward;
  forward.chunk_bytes = 4096;
  forward.h = memory.filled(p.type, D * B * P);
  forward.c = p.states > 1 ? memory.filled(compute, D * B * p.seconds() * H) : nullptr;
  forward.y = memory.empty(p.type, rows * D * P);
  if (p.states > 1 && !p.options) forward.cells = memory.empty(p.type, rows * D * H);
  const Index tape_bytes = d.tape_bytes(layer);
  void* const tape = tape_bytes ? memory.bytes(tape_bytes) : nullptr;
  for (void* kept : {static_cast<void*>(nullptr), tape}) {  // inference, then training
    forward.tape = kept;
    forward.scratch = memory.bytes(d.forward_work(forward).scratch_bytes);
    d.forward(forward, matmul, nullptr);
    out.take("y", forward.y, p.type, rows * D * P);
    out.take("h", forward.h, p.type, D * B * P);
    out.take("c", forward.c, compute, D * B * p.seconds() * H);
    out.take("cells", forward.cells, p.type, rows * D * H);
  }

  static_cast<Layer&>(backward) = layer;
  backward.h0 = memory.filled(p.type, D * B * P);
  backward.c0 = p.states > 1 ? memory.filled(compute, D * B * p.seconds() * H) : nullptr;
  backward.y = forward.y;
  backward.tape = tape;
  backward.dy = memory.filled(p.type, rows * D * P);
  if (p.states > 1 && !p.options) backward.dcells = memory.filled(p.type, rows * D * H);
  backward.dh = memory.filled(compute, D * B * P);
  backward.dc = p.states > 1 ? memory.filled(compute, D * B * p.seconds() * H) : nullptr;
  backward.dx = memory.empty(p.type, rows * layer.x_stride);
  for (int direction = 0; direction < p.directions; ++direction) {
    backward.dinput[direction] = memory.empty(p.type, gate_rows * I);
    if (p.multiplies()) backward.drecurrent[direction] = memory.empty(p.type, gate_rows * P);
    backward.dinput_bias[direction] = memory.empty(p.type, gate_rows);
    backward.dbias[direction] = memory.empty(p.type, gate_rows);
    if (P != H) backward.dprojection[direction] = memory.empty(p.type, P * H);
  }
  backward.chunk_bytes = 4096;
  backward.scratch = memory.bytes(d.backward_work(backward).scratch_bytes);
  d.backward(backward, matmul, nullptr);
  out.take("dx", backward.dx, p.type, rows * layer.x_stride);
  out.take("dh", backward.dh, compute, D * B * P);
  out.take("dc", backward.dc, compute, D * B * p.seconds() * H);
  for (int direction = 0; direction < p.directions; ++direction) {
    out.take("dW_ih", backward.dinput[direction], p.type, gate_rows * I);
    out.take("dW_hh", backward.drecurrent[direction], p.type, gate_rows * P);
    out.take("db_ih", backward.dinput_bias[direction], p.type, gate_rows);
    out.take("db_hh", backward.dbias[direction], p.type, gate_rows);
    out.take("dW_hr", backward.dprojection[direction], p.type, P * H);
  }
  if (variations) variations->take(p, out);
  return out;
}

inline Outcome run(const Problem& p) {
  return compute_type(p.type) == Type::f64 ? run<double>(p) : run<float>(p);
}

struct CellOf {
  CellId id;
  int gates, states;
};
#define RNNFUSED_CELL(name, type) CellOf{CellId::name, RNNFUSED_ISA::type::gates, RNNFUSED_ISA::type::states},
inline constexpr CellOf kCells[] = {RNNFUSED_CELLS(RNNFUSED_CELL)};
#undef RNNFUSED_CELL

}  // namespace cuda
}  // namespace rnnfused
