// Where the rows of a stream are: the batch shard [first, last) of every step, in the order in which a
// direction runs.
#pragma once

#include "core/sequence.h"
#include "core/simd.h"
#include "cpu/pack.h"
#include "cpu/plan.h"

namespace rnnfused::RNNFUSED_ISA {

// A share [first, last) of n things for member m of `members`.
struct Range {
  Index first, last;
  Index size() const { return last - first; }
};

RNNFUSED_HD Range share(Index n, int members, int m) { return {n * m / members, n * (m + 1) / members}; }

// Hands out pieces of one allocation. Without a base it only counts, so that the code that lays memory out
// also sizes it.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(Index n) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (n * Index(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
  Index used() const { return used_; }

 private:
  char* base_;
  Index used_ = 0;
};

struct Stream {
  SequenceShape shape;
  Index first, last;  // rows of the batch

  Index batch() const { return last - first; }
  // Steps in processing order: position s runs step(s).
  Index step(Index s) const { return shape.reverse ? shape.steps - 1 - s : s; }
  // Rows of the shard that are active at position s; none before the first and after the last.
  Index active(Index s) const {
    if (s < 0 || s >= shape.steps) return 0;
    const Index n = shape.active(step(s)) - first;
    return n < 0 ? 0 : n < batch() ? n : batch();
  }
  // Row b of the shard at position s, among all rows of the sequence.
  Index row(Index s, Index b) const { return shape.offsets[step(s)] + first + b; }
  // The row before it in processing order, or -1 where row b of the shard starts at s.
  Index previous(Index s, Index b) const { return b < active(s - 1) ? row(s - 1, b) : -1; }
  // The row at which row b of the shard ends, or -1 if it is never active.
  Index final_row(Index b) const {
    for (Index s = shape.steps - 1; s >= 0; --s) {
      if (b < active(s)) return row(s, b);
    }
    return -1;
  }
};

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
