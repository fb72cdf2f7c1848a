#include "cuda/drivers.h"
#include "cuda/launch.cuh"
#include "cuda/tangent.cuh"

namespace rnnfused::cuda {
namespace {

template <class Args>
using Run = void (*)(const Args& step, StreamHandle stream);

template <class Args, class Kernel>
void launch_step(const Args& step, StreamHandle stream, Kernel with_tangents, Kernel without) {
  if (step.rows == 0) return;
  const Geometry g = geometry(step.rows, step.hidden, 1);
  LaunchConfig config;
  config.grid = {g.grid_x, g.grid_y, 1};
  config.block = {g.block_x, g.block_y, 1};
  launch(config, stream, step.tangents ? with_tangents : without, step);
}

template <class Cell, class T>
void run_forward(const TangentForward<T>& step, StreamHandle stream) {
  launch_step(step, stream, &forward_tangents<Cell, Dual<T>, T>, &forward_tangents<Cell, T, T>);
}

template <class Cell, class T>
void run_backward(const TangentBackward<T>& step, StreamHandle stream) {
  launch_step(step, stream, &backward_tangents<Cell, Dual<T>, T>, &backward_tangents<Cell, T, T>);
}

}  // namespace

template <class T>
void tangent_forward(CellId cell, const TangentForward<T>& step, StreamHandle stream) {
#define RNNFUSED_RUN(name, Cell) &run_forward<Cell, T>,
  constexpr Run<TangentForward<T>> all[] = {RNNFUSED_CELLS(RNNFUSED_RUN)};
#undef RNNFUSED_RUN
  all[int(cell)](step, stream);
}

template <class T>
void tangent_backward(CellId cell, const TangentBackward<T>& step, StreamHandle stream) {
#define RNNFUSED_RUN(name, Cell) &run_backward<Cell, T>,
  constexpr Run<TangentBackward<T>> all[] = {RNNFUSED_CELLS(RNNFUSED_RUN)};
#undef RNNFUSED_RUN
  all[int(cell)](step, stream);
}

template void tangent_forward(CellId, const TangentForward<float>&, StreamHandle);
template void tangent_forward(CellId, const TangentForward<double>&, StreamHandle);
template void tangent_backward(CellId, const TangentBackward<float>&, StreamHandle);
template void tangent_backward(CellId, const TangentBackward<double>&, StreamHandle);

}  // namespace rnnfused::cuda
