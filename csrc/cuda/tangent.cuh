// The elementwise part of a step between torch's products, with tangents or without. V is T or Dual<T>.
#pragma once

#include "core/pieces.h"
#include "cuda/gates.cuh"
#include "cuda/plan.h"

namespace rnnfused::cuda {

template <class Cell, class V, class T>
__global__ void __launch_bounds__(kBlockThreads) forward_tangents(TangentForward<T> step) {
  const Place<1> place;
  if (place.first >= step.hidden) return;
  place.for_rows(step.rows, [&](Index row) { forward_piece<Cell, V>(step, Piece<T>{row, place.first, 1}); });
}

template <class Cell, class V, class T>
__global__ void __launch_bounds__(kBlockThreads) backward_tangents(TangentBackward<T> step) {
  const Place<1> place;
  if (place.first >= step.hidden) return;
  place.for_rows(step.rows, [&](Index row) { backward_piece<Cell, V>(step, Piece<T>{row, place.first, 1}); });
}

}  // namespace rnnfused::cuda
