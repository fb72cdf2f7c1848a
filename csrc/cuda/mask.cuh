// Padded sequences with lengths of their own and resets inside of them, as the kernels see them: in memory of
// the device, so that the host need not know them.
#pragma once

#include "cuda/layer.h"
#include "cuda/vector.cuh"

namespace rnnfused::cuda {

// What the states of a row come from.
enum class Origin { previous, initial, zero };

struct Mask {
  const Index* lengths;  // [B], or null: all steps
  const bool* resets;    // [T, B], or null: none
  const bool* active;    // [B], or null: all rows take part
  Index steps, batch;

  __device__ bool is_there(Index step, Index b) const {
    return step < steps && !(lengths && step >= lengths[b]) && !(active && !active[b]);
  }
  // Whether a sequence is cut before the step.
  __device__ bool is_cut(Index step, Index b) const { return resets && resets[step * batch + b]; }

  // Of a row that is there, in a direction. `before`: how many rows the position before holds, whose rows do
  // not say all where there are lengths.
  __device__ Origin origin(int direction, Index step, Index b, Index before) const {
    const Index cut = direction == 0 ? step : step + 1;
    if (direction == 1 && !is_there(step + 1, b)) return Origin::initial;
    if (cut < steps && is_cut(cut, b)) return Origin::zero;
    return b < before ? Origin::previous : Origin::initial;
  }
  // Whether the row's state is zeroed once it is done, which only shows at the sequence's end.
  __device__ bool ends_in_zero(int direction, Index step, Index b) const {
    return direction == 1 && step == 0 && is_cut(0, b);
  }
};

}  // namespace rnnfused::cuda
