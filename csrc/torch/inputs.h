// Everything a call hands over, checked, as the kernels read it, and alive until the call ends.
#pragma once

#include <ATen/DimVector.h>

#include "core/sequence.h"
#include "cpu/kernels.h"
#include "torch/ops.h"

namespace rnnfused {

constexpr int kSlots = 5;  // of a direction's weights: W_ih, W_hh, b_ih, b_hh, W_hr

// The cell of that name; throws ValueError for another.
CellId cell_id(const std::string& name);

// As the kernels read it: in memory as it looks, without strides and without torch's lazy negation.
at::Tensor dense(const at::Tensor& t);

// Throws RuntimeError, naming the argument, unless the tensor is of the device and dtype of `like` and of
// these sizes.
void check_tensor(const at::Tensor& t, const char* name, const at::Tensor& like, at::IntArrayRef sizes);

// Layers over one another: each one's share of the states and of the flat list of parameters.
struct StackParams {
  c10::ArrayRef<at::Tensor> params;
  int64_t layers, directions;
  bool has_biases, projected;

  // Throws RuntimeError for states of another number of layers, ValueError for a wrong number of params.
  StackParams(c10::ArrayRef<at::Tensor> all, const at::Tensor& h0, const std::optional<at::Tensor>& c0,
              bool biases, int64_t layer_count, int64_t direction_count);

  // A layer's slice of h or c.
  at::Tensor state(const at::Tensor& states, int64_t layer) const;
  // A layer's weights, with a place for those that it does not have.
  OptionalTensors slots(int64_t layer) const;

 private:
  size_t of_layer() const { return size_t(directions * (2 + 2 * has_biases + projected)); }
};

struct Inputs {
  CellId cell;
  CellInfo info;
  bool on_gpu;  // which back end runs the call
  int directions;
  at::Tensor x, h0, c0;
  std::vector<at::Tensor> weights;  // [directions * kSlots], undefined where absent
  std::vector<Index> offsets;
  SequenceShape shape;

  // Throws RuntimeError, naming the argument, for what does not fit together.
  Inputs(const std::string& cell_name, const at::Tensor& x_in, const at::Tensor& h0_in,
         const std::optional<at::Tensor>& c0_in, const OptionalTensors& w,
         const std::optional<at::Tensor>& batch_sizes);

  const at::Tensor& weight(int direction, int slot) const {
    return weights[size_t(direction * kSlots + slot)];
  }
  // A result like x, uninitialised.
  at::Tensor empty(at::IntArrayRef sizes) const;
  at::DimVector output_sizes() const;

 private:
  void set_shape(const std::optional<at::Tensor>& batch_sizes, Index hidden, Index output);
  void add_weights(const std::optional<at::Tensor>* w);
};

}  // namespace rnnfused
