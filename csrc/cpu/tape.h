// What forward leaves behind for backward on the CPU.
#pragma once

#include "core/simd.h"
#include "core/staged.h"
#include "core/stream.h"
#include "core/tape_size.h"
#include "cpu/pack.h"

namespace rnnfused::RNNFUSED_ISA {

// The rows of some positions.
RNNFUSED_HD Range rows_of(const SequenceShape& shape, Range positions) {
  const Index first = shape.reverse ? shape.steps - positions.last : positions.first;
  return {shape.offsets[first], shape.offsets[first + positions.size()]};
}

// The first position whose gates are kept.
RNNFUSED_HD Index first_kept(const SequenceShape& shape, bool recompute) {
  if (!recompute) return 0;
  const Stream stream(shape);
  const Index most = most_kept_rows(shape.rows());
  Index first = shape.steps, rows = 0;
  while (first > 0 && rows + stream.active(first - 1) <= most) rows += stream.active(--first);
  return first;
}

// Training's memory of one direction, laid out within what TapeSize allows: the accumulators (overwritten by
// what the cell tapes) of the rows that keep them, and for every row c, and with a projection the cell's
// output before it. Which rows keep their gates depends on the direction.
template <class Cell, class S>
struct Tape {
  static constexpr bool keeps_cell = Cell::states > 1;
  static TapeSize size(bool projected) {
    return {(keeps_cell ? 1 : 0) + (projected ? 1 : 0), Cell::taped > 0 ? Cell::accumulators : 0};
  }
  static constexpr bool rebuilds_gates_if(bool recompute) { return Cell::taped > 0 && recompute; }

  Index units;     // H in whole vectors
  Range kept;      // rows whose gates are there
  S* gates;        // [kept rows, blocks, accumulators, lanes]
  S* cell;         // [rows, units]
  S* unprojected;  // [rows, units]

  static Range kept_rows(const SequenceShape& shape, bool recompute) {
    if (Cell::taped == 0) return {0, 0};
    return rows_of(shape, {first_kept(shape, recompute), shape.steps});
  }

  // Without data (inference) nothing is kept.
  Tape(const SequenceShape& shape, bool recompute, S* data)
      : units(padded<Compute<S>>(shape.hidden)), kept{0, 0}, gates(data), cell(data), unprojected(data) {
    if (!data) return;
    kept = kept_rows(shape, recompute);
    cell = gates + kept.size() * units * Cell::accumulators;
    unprojected = cell + (keeps_cell ? shape.rows() * units : 0);
  }
  bool keeps_gates(Index row) const { return row >= kept.first && row < kept.last; }
  bool keeps_gates(Range rows) const { return kept.first <= rows.first && rows.last <= kept.last; }
  S* gates_of(Index row) const { return gates + (row - kept.first) * units * Cell::accumulators; }
  S* cell_of(Index row) const { return cell + row * units; }
  S* unprojected_of(Index row) const { return unprojected + row * units; }
};

// As backward sees it, which does not write to it.
template <class Cell, class S>
RNNFUSED_HD Tape<Cell, S> tape_of(const BackwardArgs<S>& args) {
  return {args.shape, args.recompute, const_cast<S*>(args.tape)};
}

}  // namespace rnnfused::RNNFUSED_ISA
