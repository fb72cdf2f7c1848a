// The stepwise driver on memory with inaccessible pages around every buffer: nothing outside is touched, and
// everything that is asked for is written. What the numbers are, tests/test_emulated.py holds against the
// reference.
#include "driver_case.h"

namespace rnnfused {
namespace cuda {
namespace {

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
  for (Index b = 0; b < B; ++b) {
    const std::vector<double> y = numbers_of(p.type, forward.y, b * P, P);
    CHECK(y == (active[b] ? numbers_of(p.type, forward.h, b * P, P) : std::vector<double>(size_t(P), 0)));
  }
}

template <class Body>
void for_problems(Body body) {
  for (const CellOf& cell : kCells) {
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
    run(p).check_finite();
    p.recompute = true;
    run(p).check_finite();
    p.output = p.hidden / 2;
    if (p.cell == CellId::lstm) run(p).check_finite();
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
          run(p).check_finite();
          p.recompute = options.maths != Maths::reset_gru && p.multiplies();
          run(p).check_finite();
        }
      }
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfused
