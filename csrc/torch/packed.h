// Layers whose weights are packed once, for any number of calls: what rnnfused.Frozen and Stepper call.
#pragma once

#include <mutex>
#include <optional>
#include <string>

#include "cpu/dispatch.h"
#include "torch/inputs.h"
#include "torch/ops.h"

namespace rnnfused {

class RNNFUSED_API Frozen {
 public:
  // layer and params: as the operator's. The params must not change any more. Throws what the operator
  // throws.
  Frozen(const std::string& layer, Tensors params);

  // As the operator; nothing if something wants to see the call. Throws RuntimeError, too, for tensors on a
  // GPU, and for those through which a derivative is to be taken. Calls of several threads wait for each
  // other.
  std::optional<Tensors> forward(const at::Tensor& input, at::TensorList hx, const Layout& layout);

 private:
  std::mutex one_at_a_time_;
  const LayerOptions& options_;
  Tensors params_;
  cpu::PackedStack packed_;
};

class RNNFUSED_API Stepper {
 public:
  // As Frozen, in one direction. hx: h [L, B, P] and c [L, B, H] are the state, of the type that is computed
  // in: they are read and written in place. `type` is that of what a step is given and gives: the params' or
  // the one that is computed in. Throws what the operator throws, and RuntimeError for tensors on a GPU.
  Stepper(const std::string& layer, Tensors params, Tensors hx, at::ScalarType type);

  // x [B, I]; y [B, P], which the next call does not touch. active: bool [B], or none for all: the others'
  // states stand still, and their y is zero. Calls of several threads wait for each other. Throws
  // RuntimeError, naming the argument, for another device, dtype or size, and for an input through which a
  // derivative is to be taken.
  at::Tensor step(const at::Tensor& x, const OptionalTensor& active);

 private:
  // `rows`: those that take part, or null for all.
  template <class S>
  void run(const at::Tensor& x, const at::Tensor& y, const std::vector<Index>* rows);

  std::mutex one_at_a_time_;
  const LayerOptions& options_;
  at::ScalarType type_;
  Tensors outputs_;             // of every layer but the last
  std::vector<Inputs> layers_;  // which hold the state
  cpu::PackedStack packed_;
};

}  // namespace rnnfused
