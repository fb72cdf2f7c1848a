// Layers whose weights are packed once, for any number of calls: what rnnfused.Frozen and Stepper call.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "torch/backends.h"
#include "torch/ops.h"

namespace rnnfused {

class RNNFUSED_API Frozen {
 public:
  // layer and params: as the operator's. The params must not change any more. Throws what the operator
  // throws; where they are on a GPU, or of 8 bits, before there is a call.
  Frozen(const std::string& layer, Tensors params);

  // As the operator; nothing if something wants to see the call. Throws RuntimeError, too, for tensors
  // through which a derivative is to be taken. Calls of several threads wait for each other.
  std::optional<Tensors> forward(const at::Tensor& input, at::TensorList hx, const Layout& layout);

 private:
  std::mutex one_at_a_time_;
  const LayerOptions& options_;
  Tensors params_;
  KeptWeights kept_;

  // Weights on a GPU, if they are not yet prepared and nothing wants to see it.
  void prepare();
};

class RNNFUSED_API Stepper {
 public:
  // As Frozen, in one direction. hx: h [L, B, P] and c [L, B, H] are the state, of the type that is computed
  // in: they are read and written in place. `type` is that of what a step is given and gives: the params' or
  // the one that is computed in. Throws what the operator throws, and RuntimeError for tensors on a device
  // that has no kernels. before: one with the same hx, which may still be asked for steps: they take turns.
  Stepper(const std::string& layer, Tensors params, Tensors hx, at::ScalarType type,
          const Stepper* before = nullptr);

  // x [B, I]; y [B, P], which the next call does not touch. active: bool [B], or none for all: the others'
  // states stand still, and their y is zero. out: what y is written to, contiguous, or none for a new tensor.
  // Calls of several threads wait for each other; on a GPU a call is work of the current stream. Throws
  // RuntimeError, naming the argument, for another device, dtype or size, for an input through which a
  // derivative is to be taken, and for an out that shares memory with x.
  at::Tensor step(const at::Tensor& x, const OptionalTensor& active, const OptionalTensor& out);

  // Runs body, which may read hx or, if it says so, write to it, while no step does.
  template <class Body>
  void at_rest(bool writes, Body body) {
    const std::lock_guard<std::recursive_mutex> lock(*one_at_a_time_);
    body();
    if (writes) state_was_set();
  }

 private:
  void state_was_set();
  void prepare(const Tensors& hx);
  // x as kernels read it. Throws what `step` throws.
  at::Tensor checked(const at::Tensor& x, const OptionalTensor& active, const OptionalTensor& out) const;
  // x and y are of the type of the weights.
  void step_on_host(const at::Tensor& x, const OptionalTensor& active, const at::Tensor& y);
  void step_on_device(const at::Tensor& x, const OptionalTensor& active, const at::Tensor& y);
  // What a layer writes its output to: what the layer above reads, or y.
  const at::Tensor& output_of(size_t layer, const at::Tensor& y) const {
    return layer + 1 < layers_.size() ? layers_[layer + 1].x : y;
  }
  // `rows`: those that take part, or null for all.
  template <class S>
  void run(const at::Tensor& x, const at::Tensor& y, const std::vector<Index>* rows);

  // Recursive: while Python reads or writes the state, finalizers and signal handlers may run that do so,
  // too.
  std::shared_ptr<std::recursive_mutex> one_at_a_time_;
  const LayerOptions& options_;
  at::ScalarType type_;
  std::vector<Inputs> layers_;  // which hold the state, and room for what each reads
  KeptWeights kept_;
  std::vector<StepTensors> steps_;  // of every layer, on a GPU: what is the same in each step
};

}  // namespace rnnfused
