// Compiled once per ISA. One symbol leaves this object: its table of kernels.
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

template <class T>
constexpr TypeKernels<T> type_kernels() {
#define RNNFUSED_KERNELS(name, Cell) kernels_of<Cell, T>(),
#define RNNFUSED_TANGENTS(name, Cell) tangent_kernels_of<Cell, T>(),
  return {kLanes<T>, {RNNFUSED_CELLS(RNNFUSED_KERNELS)}, {RNNFUSED_CELLS(RNNFUSED_TANGENTS)}};
#undef RNNFUSED_TANGENTS
#undef RNNFUSED_KERNELS
}

#define RNNFUSED_TEXT_OF(x) #x
#define RNNFUSED_TEXT(x) RNNFUSED_TEXT_OF(x)
#define RNNFUSED_INFO(name, Cell)                                           \
  CellInfo{#name,         Cell::gates,   Cell::states,  Cell::accumulators, \
           Cell::x_first, Cell::h_first, Cell::gate_of, Cell::taped},

extern const KernelTable kernels;
const KernelTable kernels = {RNNFUSED_TEXT(RNNFUSED_ISA),
                             {RNNFUSED_CELLS(RNNFUSED_INFO)},
                             type_kernels<float>(),
                             type_kernels<double>()};

}  // namespace RNNFUSED_ISA
}  // namespace rnnfused
