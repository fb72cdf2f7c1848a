// The stepwise driver on memory with inaccessible pages around every buffer: nothing outside is touched, and
// everything that is asked for is written. What the numbers are, tests/test_emulated.py holds against the
// reference.
#include <cmath>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <memory>
#include <vector>

#include "cuda/drivers.h"
#include "testing.h"

namespace rnnfused {
namespace cuda {
namespace {

using emulation::GlobalBuffer;

constexpr Type kTypes[] = {Type::f32, Type::f64, Type::f16, Type::bf16};

double number_at(const void* data, Type type, Index i) {
  switch (type) {
    case Type::f32:
      return double(static_cast<const float*>(data)[i]);
    case Type::f64:
      return static_cast<const double*>(data)[i];
    case Type::f16:
      return double(to_float(static_cast<const Half*>(data)[i]));
    default:
      return double(to_float(static_cast<const BFloat16*>(data)[i]));
  }
}

void set_number(void* data, Type type, Index i, double x) {
  switch (type) {
    case Type::f32:
      static_cast<float*>(data)[i] = float(x);
      break;
    case Type::f64:
      static_cast<double*>(data)[i] = x;
      break;
    case Type::f16:
      static_cast<Half*>(data)[i] = from_float<Half>(float(x));
      break;
    default:
      static_cast<BFloat16*>(data)[i] = from_float<BFloat16>(float(x));
  }
}

class PlainMatmul : public Matmul {
 public:
  std::function<void()> prepare(const Product& p) override {
    return [p] {
      for (Index entry = 0; entry < p.batch; ++entry) {
        for (Index i = 0; i < p.m; ++i) {
          for (Index j = 0; j < p.n; ++j) {
            double sum = p.accumulate ? value(p.out, entry, i, j) : 0;
            for (Index k = 0; k < p.k; ++k) sum += value(p.a, entry, i, k) * value(p.b, entry, k, j);
            set_number(const_cast<void*>(p.out.data), p.out.type, place(p.out, entry, i, j), sum);
          }
        }
      }
    };
  }

 private:
  static Index place(const Matrix& m, Index entry, Index row, Index column) {
    return entry * m.batch_stride + row * m.row_stride + column * m.column_stride;
  }
  static double value(const Matrix& m, Index entry, Index row, Index column) {
    return number_at(m.data, m.type, place(m, entry, row, column));
  }
};

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
    for (Index i = 0; i < n; ++i) set_number(data, type, i, 0.003 * double(++drawn_ % 97 - 48));
    return data;
  }

 private:
  std::vector<std::unique_ptr<GlobalBuffer<unsigned char>>> all_;
  Index drawn_ = 0;
};

void check_finite(const void* data, Type type, Index n) {
  bool finite = true;
  for (Index i = 0; i < n; ++i) finite = finite && std::isfinite(number_at(data, type, i));
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
