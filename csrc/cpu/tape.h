// What forward leaves behind for backward on the CPU.
#pragma once

#include "core/simd.h"
#include "core/stream.h"
#include "cpu/pack.h"

namespace rnnfused::RNNFUSED_ISA {

// Training's memory of one direction, laid out in scalars: for every row the accumulators (overwritten by
// what the cell tapes; not there if backward recomputes them), c, and with a projection the cell's output
// before it.
template <class Cell, class T>
struct Tape {
  static constexpr bool keeps_cell = Cell::states > 1;
  static constexpr bool keeps_gates_if(bool recompute) { return Cell::taped > 0 && !recompute; }
  static constexpr bool rebuilds_gates_if(bool recompute) { return Cell::taped > 0 && recompute; }

  bool keeps_gates;
  Index units;     // H in whole vectors
  T* gates;        // [rows, blocks, accumulators, lanes]
  T* cell;         // [rows, units]
  T* unprojected;  // [rows, units]

  static Index scalars(const SequenceShape& shape, bool recompute) {
    return shape.rows() * padded<T>(shape.hidden) *
           ((keeps_gates_if(recompute) ? Cell::accumulators : 0) + (keeps_cell ? 1 : 0) +
            (shape.projected() ? 1 : 0));
  }

  // Without data (inference) every part is null.
  Tape(const SequenceShape& shape, bool recompute, T* data)
      : keeps_gates(keeps_gates_if(recompute)),
        units(padded<T>(shape.hidden)),
        gates(data),
        cell(data),
        unprojected(data) {
    if (!data) return;
    cell = gates + (keeps_gates ? shape.rows() * units * Cell::accumulators : 0);
    unprojected = cell + (keeps_cell ? shape.rows() * units : 0);
  }
  T* gates_of(Index row) const { return gates + row * units * Cell::accumulators; }
  T* cell_of(Index row) const { return cell + row * units; }
  T* unprojected_of(Index row) const { return unprojected + row * units; }
};

// As backward sees it, which does not write to it.
template <class Cell, class T>
RNNFUSED_HD Tape<Cell, T> tape_of(const BackwardArgs<T>& args) {
  return {args.shape, args.recompute, const_cast<T*>(args.tape)};
}

}  // namespace rnnfused::RNNFUSED_ISA
