// Layers run one step a call, their weights packed once and their state carried: what rnnfused.Stepper calls.
#pragma once

#include <mutex>

#include "cpu/dispatch.h"
#include "torch/inputs.h"

namespace rnnfused {

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
  at::Tensor h_, c_;
  std::vector<at::Tensor> outputs_;  // of every layer but the last
  std::vector<Inputs> layers_;
  cpu::PackedStack packed_;
};

}  // namespace rnnfused
