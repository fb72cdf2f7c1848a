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
