// Placed sequences (inputs.h) as packed rows of their own, copied there and back by torch: for what knows no
// places, which is everything but the CPU's forward and backward. Reads lengths on the host.
#pragma once

#include "torch/inputs.h"

namespace rnnfused {

class Gathered {
 public:
  Gathered(const Sequences& sequences, const c10::Device& device);

  // Of packed rows.
  const at::Tensor& batch_sizes() const { return batch_sizes_; }

  // What is undefined stays so. The caller's rows [.., units], in the order of the packed ones.
  at::Tensor rows(const at::Tensor& t) const;
  // States [.., B, units], of as many directions as `directions` says one after the other, in the order of
  // the packed sequences; zeros for those that begin, or end, with none.
  at::Tensor initial(const at::Tensor& states, int directions) const;
  at::Tensor final(const at::Tensor& states, int directions) const;

  // And back: rows in no sequence are zeros.
  at::Tensor rows_back(const at::Tensor& t, at::IntArrayRef sizes) const;
  // States of sequences without a step are those of `through`, or zeros if it is undefined.
  at::Tensor initial_back(const at::Tensor& states, int directions, const at::Tensor& through) const;
  at::Tensor final_back(const at::Tensor& states, int directions, const at::Tensor& through) const;

 private:
  using Indices = at::Tensor[kMaxDirections];

  at::Tensor select(const at::Tensor& states, int directions, const Indices& of) const;
  at::Tensor put_back(const at::Tensor& states, int directions, const Indices& of,
                      const at::Tensor& through) const;

  Index callers_batch_;
  at::Tensor batch_sizes_, places_, empty_;
  Indices initial_, final_;  // of the caller's batch; its size for none
};

}  // namespace rnnfused
