// The stepwise driver on memory with inaccessible pages around every buffer: nothing outside is touched, and
// everything that is asked for is written. What the numbers are, tests/test_emulated.py holds against the
// reference.
#include <cmath>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <memory>
#include <vector>

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

struct Problem {
  CellId cell;
  int gates, states;
  Type type;
  std::vector<Index> batch_sizes;
  int directions;
  Index input, hidden, output;
  bool recompute;
};

void run(const Problem& p) {
  std::vector<Index> offsets = {0};
  for (const Index n : p.batch_sizes) offsets.push_back(offsets.back() + n);
  const Index D = p.directions, B = p.batch_sizes[0], I = p.input, H = p.hidden, P = p.output;
  const Index rows = offsets.back(), gate_rows = p.gates * H;
  const Type compute = compute_type(p.type);
  const CellDrivers& d = drivers(p.cell, p.type);
  Buffers memory;
  PlainMatmul matmul;

  Layer layer{};
  layer.type = p.type;
  layer.directions = p.directions;
  layer.shape = {Index(p.batch_sizes.size()), B, I, H, P, offsets.data(), false};
  layer.x = memory.filled(p.type, rows * I);
  layer.input_weights = memory.filled(p.type, D * gate_rows * I);
  layer.recurrent_weights = memory.filled(p.type, D * gate_rows * P);
  if (P != H) layer.projection = memory.filled(p.type, D * P * H);
  for (int direction = 0; direction < p.directions; ++direction) {
    layer.input_bias[direction] = memory.filled(p.type, gate_rows);
    layer.bias[direction] = memory.filled(p.type, gate_rows);
  }
  layer.recompute = p.recompute;

  ForwardLayer forward{};
  static_cast<Layer&>(forward) = layer;
  forward.chunk_bytes = 4096;
  forward.h = memory.filled(p.type, D * B * P);
  forward.c = p.states > 1 ? memory.filled(compute, D * B * H) : nullptr;
  forward.y = memory.empty(p.type, rows * D * P);
  const Index tape_bytes = d.tape_bytes(layer.shape, p.directions, p.recompute);
  void* const tape = tape_bytes ? memory.bytes(tape_bytes) : nullptr;
  for (void* kept : {static_cast<void*>(nullptr), tape}) {  // inference, then training
    forward.tape = kept;
    forward.scratch = memory.bytes(d.forward_work(forward).scratch_bytes);
    d.forward(forward, matmul, nullptr);
    check_finite(forward.y, p.type, rows * D * P);
    check_finite(forward.h, p.type, D * B * P);
    if (forward.c) check_finite(forward.c, compute, D * B * H);
  }

  BackwardLayer backward{};
  static_cast<Layer&>(backward) = layer;
  backward.h0 = memory.filled(p.type, D * B * P);
  backward.c0 = p.states > 1 ? memory.filled(compute, D * B * H) : nullptr;
  backward.y = forward.y;
  backward.tape = tape;
  backward.dy = memory.filled(p.type, rows * D * P);
  backward.dh = memory.filled(compute, D * B * P);
  backward.dc = p.states > 1 ? memory.filled(compute, D * B * H) : nullptr;
  backward.dx = memory.empty(p.type, rows * I);
  for (int direction = 0; direction < p.directions; ++direction) {
    backward.dinput[direction] = memory.empty(p.type, gate_rows * I);
    backward.drecurrent[direction] = memory.empty(p.type, gate_rows * P);
    backward.dinput_bias[direction] = memory.empty(p.type, gate_rows);
    backward.dbias[direction] = memory.empty(p.type, gate_rows);
    if (P != H) backward.dprojection[direction] = memory.empty(p.type, P * H);
  }
  backward.chunk_bytes = 4096;
  backward.scratch = memory.bytes(d.backward_work(backward).scratch_bytes);
  d.backward(backward, matmul, nullptr);
  check_finite(backward.dx, p.type, rows * I);
  check_finite(backward.dh, compute, D * B * P);
  if (backward.dc) check_finite(backward.dc, compute, D * B * H);
  for (int direction = 0; direction < p.directions; ++direction) {
    check_finite(backward.dinput[direction], p.type, gate_rows * I);
    check_finite(backward.drecurrent[direction], p.type, gate_rows * P);
    check_finite(backward.dinput_bias[direction], p.type, gate_rows);
    check_finite(backward.dbias[direction], p.type, gate_rows);
    if (P != H) check_finite(backward.dprojection[direction], p.type, P * H);
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

}  // namespace
}  // namespace cuda
}  // namespace rnnfused
