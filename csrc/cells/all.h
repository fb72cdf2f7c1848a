// The registry: one include and one list entry per cell. Drivers, bindings, tests and benches iterate it.
//
// A cell is its gate maths and nothing else. `accumulators` is what a driver holds per hidden unit before the
// epilogue; the input projection feeds the `gates` accumulators from `x_first` on, the recurrent projection
// those from `h_first` on, and `gate_of` says which gate (in torch's order) feeds each. forward() turns
// accumulators and previous states into next states and `taped` values; backward() turns those and the
// states' gradients into gradients of the accumulators and of the previous states, without the recurrent
// product, which the driver adds. State 0 is always h.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

// X(name, type): `name` is CellId's, Python's and NumPy's; `type` is the cell's.
#define RNNFUSED_CELLS(X) \
  X(rnn_tanh, RnnTanh)    \
  X(rnn_relu, RnnRelu)    \
  X(lstm, Lstm)           \
  X(gru, Gru)

namespace rnnfused {

#define RNNFUSED_CELL_ID(name, type) name,
enum class CellId : int { RNNFUSED_CELLS(RNNFUSED_CELL_ID) count };
#undef RNNFUSED_CELL_ID

}  // namespace rnnfused
