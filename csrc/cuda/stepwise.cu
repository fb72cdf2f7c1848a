// Compiled once per type: RNNFUSED_TYPE is float, double, Half or BFloat16.
#include "cells/all.h"
#include "cuda/planned.cuh"
#include "cuda/varied_stepwise.cuh"

namespace rnnfused::cuda {

// What the kernels take for granted of a cell.
#define RNNFUSED_CHECK(name, Cell)                                 \
  static_assert(Cell::states >= 1 && Cell::states <= 2, "states"); \
  static_assert(Cell::taped <= Cell::accumulators, "the tape overwrites the accumulators");
RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK

constexpr Type kType = TypeOf<RNNFUSED_TYPE>::value;

template <>
const CellDrivers& Stepwisely<kType>::drivers(CellId cell) {
#define RNNFUSED_DRIVERS(name, Cell)                                   \
  drivers_of<Cell, RNNFUSED_TYPE, PlannedForward<Cell, RNNFUSED_TYPE>, \
             PlannedBackward<Cell, RNNFUSED_TYPE>>(Cell::gate_of + Cell::x_first),
  static const CellDrivers all[] = {RNNFUSED_CELLS(RNNFUSED_DRIVERS)};
#undef RNNFUSED_DRIVERS
  return all[int(cell)];
}

template <>
const CellDrivers& Stepwisely<kType>::varied_drivers() {
  static constexpr int kInOrder[] = {0, 1, 2, 3};
  static_assert(sizeof kInOrder / sizeof *kInOrder == kMaxGates, "a gate for each of any cell's");
  static const CellDrivers all = drivers_of<Staged, RNNFUSED_TYPE, VariedStepwiseForward<RNNFUSED_TYPE>,
                                            VariedStepwiseBackward<RNNFUSED_TYPE>>(kInOrder);
  return all;
}

}  // namespace rnnfused::cuda
