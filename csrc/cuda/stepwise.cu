// Compiled once per type: RNNFUSED_TYPE is float, double, Half or BFloat16.
#include "cells/all.h"
#include "cuda/stepwise.cuh"

namespace rnnfused::cuda {

// What the kernels take for granted of a cell.
#define RNNFUSED_CHECK(name, Cell)                                 \
  static_assert(Cell::states >= 1 && Cell::states <= 2, "states"); \
  static_assert(Cell::taped <= Cell::accumulators, "the tape overwrites the accumulators");
RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK

template <>
const CellDrivers& stepwise<TypeOf<RNNFUSED_TYPE>::value>(CellId cell) {
#define RNNFUSED_DRIVERS(name, Cell) stepwise_drivers<Cell, RNNFUSED_TYPE>(),
  static const CellDrivers all[] = {RNNFUSED_CELLS(RNNFUSED_DRIVERS)};
#undef RNNFUSED_DRIVERS
  return all[int(cell)];
}

}  // namespace rnnfused::cuda
