// Layers whose weights are packed once, for any number of calls: what rnnfused.Frozen and Stepper call.
#pragma once

#include <mutex>

#include "cpu/dispatch.h"
#include "torch/inputs.h"
#include "torch/ops.h"

namespace rnnfused {

// stack_forward, with packed weights on the CPU if they are given.
StackResult run_stack(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                      const std::optional<at::Tensor>& c0, c10::ArrayRef<at::Tensor> params,
                      const std::optional<at::Tensor>& batch_sizes, bool has_biases, int64_t layers,
                      bool bidirectional, bool batch_first, cpu::PackedStack* packed);

class Frozen {
 public:
  // As stack_forward.
  Frozen(std::string cell, std::vector<at::Tensor> params, bool has_biases, int64_t layers,
         bool bidirectional);

  // As stack_forward; throws RuntimeError, too, for tensors on a GPU, and for those through which a
  // derivative is to be taken. Calls of several threads wait for each other.
  StackResult forward(const at::Tensor& x, const at::Tensor& h0, const std::optional<at::Tensor>& c0,
                      const std::optional<at::Tensor>& batch_sizes, bool batch_first);

 private:
  std::mutex one_at_a_time_;
  std::string cell_;
  std::vector<at::Tensor> params_;
  bool has_biases_;
  int64_t layers_;
  bool bidirectional_;
  cpu::PackedStack packed_;
};

class Stepper {
 public:
  // As stack_forward, in one direction. h [L, B, P] and c [L, B, H] are the state: they are read and written
  // in place. Throws what stack_forward throws, and RuntimeError for tensors on a GPU.
  Stepper(const std::string& cell, const std::vector<at::Tensor>& params, const at::Tensor& h,
          const std::optional<at::Tensor>& c, bool has_biases);

  // x [B, I]; y [B, P], which the next call does not touch. Calls of several threads wait for each other.
  // Throws RuntimeError, naming the argument, for another device, dtype or size, and for an input through
  // which a derivative is to be taken.
  at::Tensor step(const at::Tensor& x);

 private:
  template <class T>
  void run(const at::Tensor& x, const at::Tensor& y);

  std::mutex one_at_a_time_;
  std::vector<at::Tensor> outputs_;  // of every layer but the last
  std::vector<Inputs> layers_;       // which hold the state
  cpu::PackedStack packed_;
};

}  // namespace rnnfused
