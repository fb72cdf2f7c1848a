// One layer's arguments as the kernels read them, alive until the call ends.
#pragma once

#include <ATen/DimVector.h>

#include <vector>

#include "core/sequence.h"
#include "torch/arguments.h"

namespace rnnfused {

// Where a sequence's steps are among its rows; throws RuntimeError for batch_sizes that make no sequence.
struct Steps {
  Index steps, batch;
  std::vector<Index> offsets;  // [T + 1]

  Steps(const Arguments& arguments, const Form& form);
};

// A tensor as the kernels of a back end read it: in memory as it looks, without strides and without torch's
// lazy negation, and on the CPU in the type that it computes in. Throws RuntimeError for one without memory.
at::Tensor dense(const at::Tensor& t, const char* name, bool on_gpu);

struct Inputs {
  CellId cell;
  CellInfo info;
  bool on_gpu;  // which back end runs the call
  int directions;
  at::Tensor x, h0, c0;             // [T, B, I] or packed rows; h0 and c0 may be undefined: zeros
  std::vector<at::Tensor> weights;  // [directions * kSlots], undefined where absent
  std::vector<Index> offsets;
  SequenceShape shape;

  // The layer `index` of the arguments, which were checked, on the input x, laid out by steps.
  Inputs(const Arguments& arguments, const Form& form, const Steps& steps, int64_t index,
         const at::Tensor& x);

  const at::Tensor& weight(int direction, int slot) const {
    return weights[size_t(direction * kSlots + slot)];
  }
  // A result of the type that is computed in, uninitialised.
  at::Tensor empty(at::IntArrayRef sizes) const;
  at::DimVector output_sizes() const;
  at::DimVector state_sizes(int state) const;
};

}  // namespace rnnfused
