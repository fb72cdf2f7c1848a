// Compiled once per ISA. One symbol leaves this object: its table of kernels.
#include "cpu/kernels.h"

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace rnnfused {
namespace RNNFUSED_ISA {

template <class T>
constexpr TypeKernels<T> type_kernels() {
#define RNNFUSED_KERNELS(name, Cell)                                                    \
  CellKernels<T>{&Tape<Cell, T>::scalars, &forward_scratch<Cell, T>, &forward<Cell, T>, \
                 &backward_scratch<Cell, T>, &backward<Cell, T>},
  return {kLanes<T>, {RNNFUSED_CELLS(RNNFUSED_KERNELS)}};
#undef RNNFUSED_KERNELS
}

#define RNNFUSED_TEXT_OF(x) #x
#define RNNFUSED_TEXT(x) RNNFUSED_TEXT_OF(x)
#define RNNFUSED_INFO(name, Cell) CellInfo{#name, Cell::gates, Cell::states},

extern const KernelTable kernels;
const KernelTable kernels = {RNNFUSED_TEXT(RNNFUSED_ISA),
                             {RNNFUSED_CELLS(RNNFUSED_INFO)},
                             type_kernels<float>(),
                             type_kernels<double>()};

}  // namespace RNNFUSED_ISA
}  // namespace rnnfused
