// The stepwise driver on memory with inaccessible pages around every buffer: nothing outside is touched, and
// everything that is asked for is written. What the numbers are, tests/test_emulated.py holds against the
// reference.
#include <cmath>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <memory>
#include <optional>
#include <vector>

#include "../varied_options.h"
#include "cuda/drivers.h"
#include "plain_matmul.h"
#include "testing.h"

namespace rnnfused {
namespace cuda {
namespace {

using emulation::GlobalBuffer;

constexpr Type kTypes[] = {Type::f32, Type::f64, Type::f16, Type::bf16};

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

void check_finite(const void* data, Type type, Index n) {
  bool finite = true;
  with_type(type, data, [&](const auto* numbers) {
    for (Index i = 0; i < n; ++i) finite = finite && std::isfinite(to_double(numbers[i]));
  });
  CHECK(finite);
}

using Options = test::VariedOptions;

const Options kOptions[] = {
    {"norms of a tanh", Maths::rnn_tanh, 1, 1, GateNorm::separate},
    {"drawn LSTM", Maths::lstm, 4, 2, GateNorm::separate, CellNorm::carried, true, true},
    {"coupled", Maths::coupled_lstm, 3, 2, GateNorm::joint, CellNorm::output, true},
    {"reset before", Maths::reset_gru, 3, 1, GateNorm::none, CellNorm::none, false, true},
    {"update gate", Maths::update_gru, 3, 1, GateNorm::joint},
    {"light GRU", Maths::ligru, 2, 1, GateNorm::input},
    {"attended", Maths::augru, 3, 1, GateNorm::none, CellNorm::none, false, true},
    {"sLSTM", Maths::slstm, 4, 4},
    {"IndRNN", Maths::indrnn, 1, 1, GateNorm::none, CellNorm::none, false, true},
    {"minLSTM", Maths::minlstm, 3, 1},
};

struct Problem {
  CellId cell;
  int gates, states;
  Type type;
  std::vector<Index> batch_sizes;
  int directions;
  Index input, hidden, output;
  bool recompute;
  const Options* options = nullptr;

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
  void check(const Problem& p) {
    for (int d = 0; d < p.directions; ++d) {
      for_parameters(*p.options, gradients[d], [&](C*& at, Index rows) {
        if (rows) check_finite(at, compute_type(p.type), rows * p.hidden);
      });
    }
  }
};

// What forward and backward read alike.
Layer layer_of(const Problem& p, Buffers& memory, const std::vector<Index>& offsets) {
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
  return layer;
}

template <class C>
void run(const Problem& p) {
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
  std::optional<Variations<C>> variations;
  if (p.options) variations.emplace(p, memory, layer, backward);

  ForwardLayer forward{};
  static_cast<Layer&>(forward) = layer;
  forward.chunk_bytes = 4096;
  forward.h = memory.filled(p.type, D * B * P);
  forward.c = p.states > 1 ? memory.filled(compute, D * B * p.seconds() * H) : nullptr;
  forward.y = memory.empty(p.type, rows * D * P);
  const Index tape_bytes = d.tape_bytes(layer);
  void* const tape = tape_bytes ? memory.bytes(tape_bytes) : nullptr;
  for (void* kept : {static_cast<void*>(nullptr), tape}) {  // inference, then training
    forward.tape = kept;
    forward.scratch = memory.bytes(d.forward_work(forward).scratch_bytes);
    d.forward(forward, matmul, nullptr);
    check_finite(forward.y, p.type, rows * D * P);
    check_finite(forward.h, p.type, D * B * P);
    if (forward.c) check_finite(forward.c, compute, D * B * p.seconds() * H);
  }

  static_cast<Layer&>(backward) = layer;
  backward.h0 = memory.filled(p.type, D * B * P);
  backward.c0 = p.states > 1 ? memory.filled(compute, D * B * p.seconds() * H) : nullptr;
  backward.y = forward.y;
  backward.tape = tape;
  backward.dy = memory.filled(p.type, rows * D * P);
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
  check_finite(backward.dx, p.type, rows * layer.x_stride);
  check_finite(backward.dh, compute, D * B * P);
  if (backward.dc) check_finite(backward.dc, compute, D * B * p.seconds() * H);
  for (int direction = 0; direction < p.directions; ++direction) {
    check_finite(backward.dinput[direction], p.type, gate_rows * I);
    if (p.multiplies()) check_finite(backward.drecurrent[direction], p.type, gate_rows * P);
    check_finite(backward.dinput_bias[direction], p.type, gate_rows);
    check_finite(backward.dbias[direction], p.type, gate_rows);
    if (P != H) check_finite(backward.dprojection[direction], p.type, P * H);
  }
  if (variations) variations->check(p);
}

void run(const Problem& p) { compute_type(p.type) == Type::f64 ? run<double>(p) : run<float>(p); }

std::vector<double> numbers_of(Type type, const void* data, Index first, Index n) {
  std::vector<double> found;
  with_type(type, data, [&](const auto* numbers) {
    for (Index i = first; i < first + n; ++i) found.push_back(to_double(numbers[i]));
  });
  return found;
}

// One step of states that go on, which every other row sits out.
void step(const Problem& p) {
  const Index B = p.batch_sizes[0], H = p.hidden, P = p.output;
  const Type compute = compute_type(p.type);
  const std::vector<Index> offsets = {0, B};
  const CellDrivers& d = drivers(p.cell, p.type);
  Buffers memory;
  PlainMatmul matmul;
  ForwardLayer forward{};
  static_cast<Layer&>(forward) = layer_of(p, memory, offsets);
  bool* const active = static_cast<bool*>(memory.bytes(B));
  for (Index b = 0; b < B; ++b) active[b] = b % 2 == 0;
  forward.active = active;
  forward.chunk_bytes = 4096;
  forward.h = memory.filled(p.type, B * P);
  forward.h_wide = compute == p.type ? nullptr : memory.filled(compute, B * P);
  forward.c = p.states > 1 ? memory.filled(compute, B * H) : nullptr;
  forward.y = memory.empty(p.type, B * P);
  forward.scratch = memory.bytes(d.forward_work(forward).scratch_bytes);
  struct State {
    const void* data;
    Type type;
    Index units;
  };
  std::vector<State> states = {{forward.h, p.type, P}};
  if (forward.h_wide) states.push_back({forward.h_wide, compute, P});
  if (forward.c) states.push_back({forward.c, compute, H});
  const auto rows = [&] {
    std::vector<std::vector<double>> all;
    for (const State& s : states) {
      for (Index b = 0; b < B; ++b) all.push_back(numbers_of(s.type, s.data, b * s.units, s.units));
    }
    return all;
  };
  const auto before = rows();
  d.forward(forward, matmul, nullptr);
  const auto after = rows();
  for (size_t row = 0; row < before.size(); ++row) {
    const bool takes_part = active[row % size_t(B)];
    CHECK((before[row] == after[row]) == !takes_part);
  }
  check_finite(forward.y, p.type, B * P);
  for (Index b = 0; b < B; ++b) {
    const std::vector<double> y = numbers_of(p.type, forward.y, b * P, P);
    CHECK(y == (active[b] ? numbers_of(p.type, forward.h, b * P, P) : std::vector<double>(size_t(P), 0)));
  }
}

template <class Body>
void for_problems(Body body) {
  struct Cell {
    CellId id;
    int gates, states;
  };
#define RNNFUSED_CELL(name, type) Cell{CellId::name, type::gates, type::states},
  using namespace RNNFUSED_ISA;
  for (const Cell& cell : {RNNFUSED_CELLS(RNNFUSED_CELL)}) {
#undef RNNFUSED_CELL
    for (const Type type : kTypes) {
      for (const std::vector<Index>& batch_sizes : {std::vector<Index>(5, 3), {4, 4, 2, 1}, {1}}) {
        for (const int directions : {1, 2}) {
          for (const Index hidden : {Index(8), Index(7), Index(130)}) {
            body(Problem{cell.id, cell.gates, cell.states, type, batch_sizes, directions, 5, hidden, hidden,
                         false});
          }
        }
      }
    }
  }
}

TEST_CASE("every cell, type and layout stays inside its buffers and fills them") {
  for_problems([](Problem p) {
    CAPTURE(int(p.cell));
    CAPTURE(int(p.type));
    CAPTURE(p.batch_sizes.size());
    CAPTURE(p.directions);
    CAPTURE(p.hidden);
    run(p);
    p.recompute = true;
    run(p);
    p.output = p.hidden / 2;
    if (p.cell == CellId::lstm) run(p);
  });
}

TEST_CASE("so does a step of states that go on, and rows that sit it out are left alone") {
  for_problems([](Problem p) {
    if (p.directions > 1 || p.batch_sizes.size() != 1) return;
    p.batch_sizes = {5};
    CAPTURE(int(p.cell));
    CAPTURE(int(p.type));
    CAPTURE(p.hidden);
    step(p);
    p.output = p.hidden / 2;
    if (p.cell == CellId::lstm) step(p);
  });
}

TEST_CASE("so does every option and every cell of its own, in every type") {
  for (const Options& options : kOptions) {
    for (const Type type : kTypes) {
      for (const int directions : {1, 2}) {
        // 130 units: more than a block has threads.
        for (const Index hidden : type == Type::f32 ? std::vector<Index>{7, 130} : std::vector<Index>{7}) {
          CAPTURE(options.name);
          CAPTURE(int(type));
          CAPTURE(directions);
          CAPTURE(hidden);
          const std::vector<Index> padded(5, 3), ragged = {4, 4, 2, 1};
          Problem p{CellId::gru,
                    options.gates,
                    options.states,
                    type,
                    directions == 1 ? padded : ragged,
                    directions,
                    5,
                    hidden,
                    hidden,
                    false,
                    &options};
          run(p);
          p.recompute = options.maths != Maths::reset_gru && p.multiplies();
          run(p);
        }
      }
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfused
