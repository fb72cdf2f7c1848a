// Compiled once per ISA and type: RNNFUSED_TYPE is float, double, Half, BFloat16 or Int8. One symbol leaves
// this object: its table of kernels.
#include "cpu/kernels.h"

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/tangent.h"

namespace rnnfused {
namespace RNNFUSED_ISA {

// What the drivers take for granted of a cell.
#define RNNFUSED_CHECK(name, Cell)                                                                      \
  static_assert(Cell::states >= 1 && Cell::states <= kMaxStates, "states");                             \
  static_assert(Cell::gates >= 1 && Cell::gates <= kMaxWidth, "a block's gates fill one tile at most"); \
  static_assert(Cell::x_first >= 0 && Cell::x_first + Cell::gates <= Cell::accumulators, "x_first");    \
  static_assert(Cell::h_first >= 0 && Cell::h_first + Cell::gates <= Cell::accumulators, "h_first");    \
  static_assert(Cell::taped <= Cell::accumulators, "the tape overwrites the accumulators");
RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK

template <class Cell, class S>
constexpr TangentKernels<S> tangent_kernels_or_none() {
  if constexpr (kAsComputed<S>) {
    return tangent_kernels_of<Cell, S>();
  } else {
    return {};
  }
}

template <class S>
constexpr CellKernels<S> staged_kernels_or_none() {
  if constexpr (kAsComputed<S>) {
    return kernels_of<Staged, S>();
  } else {
    return {};
  }
}

template <class S>
constexpr TypeKernels<S> type_kernels() {
#define RNNFUSED_INFO(name, Cell)                                           \
  CellInfo{#name,         Cell::gates,   Cell::states,  Cell::accumulators, \
           Cell::x_first, Cell::h_first, Cell::gate_of, Cell::taped},
#define RNNFUSED_KERNELS(name, Cell) kernels_of<Cell, S>(),
#define RNNFUSED_TANGENTS(name, Cell) tangent_kernels_or_none<Cell, S>(),
  return {kLanes<Compute<S>>,
          int(sizeof(Operand<S>)),
          kTerms<S>,
          {RNNFUSED_CELLS(RNNFUSED_INFO)},
          {RNNFUSED_CELLS(RNNFUSED_KERNELS)},
          staged_kernels_or_none<S>(),
          {RNNFUSED_CELLS(RNNFUSED_TANGENTS)}};
#undef RNNFUSED_TANGENTS
#undef RNNFUSED_KERNELS
#undef RNNFUSED_INFO
}

#define RNNFUSED_NAME_OF(type) kernels_##type
#define RNNFUSED_NAME(type) RNNFUSED_NAME_OF(type)

extern const TypeKernels<RNNFUSED_TYPE> RNNFUSED_NAME(RNNFUSED_TYPE);
const TypeKernels<RNNFUSED_TYPE> RNNFUSED_NAME(RNNFUSED_TYPE) = type_kernels<RNNFUSED_TYPE>();

}  // namespace RNNFUSED_ISA
}  // namespace rnnfused
