#include "torch/gathered.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace rnnfused {
Gathered::Gathered(const Sequences& s, const c10::Device& device)
    : callers_batch_(s.callers_batch),
      places_(tensor_of(s.places, device)),
      empty_(tensor_of(s.empty, device)) {
  std::vector<Index> sizes;
  for (Index t = 0; t < s.steps; ++t) sizes.push_back(s.offsets[size_t(t) + 1] - s.offsets[size_t(t)]);
  batch_sizes_ = tensor_of(sizes, at::kCPU);
  const auto indices = [&](std::vector<Index> of) {
    std::replace(of.begin(), of.end(), Index(-1), callers_batch_);
    return tensor_of(of, device);
  };
  for (int d = 0; d < kMaxDirections; ++d)
    initial_[d] = indices(s.initial[d]), final_[d] = indices(s.final[d]);
}

at::Tensor Gathered::rows(const at::Tensor& t) const {
  return t.defined() ? t.reshape({-1, t.size(-1)}).index_select(0, places_) : t;
}

at::Tensor Gathered::rows_back(const at::Tensor& t, at::IntArrayRef sizes) const {
  const at::Tensor out = at::zeros(sizes, t.options());
  out.view({-1, t.size(-1)}).index_copy_(0, places_, t);
  return out;
}

at::Tensor Gathered::select(const at::Tensor& states, int directions, const Indices& of) const {
  if (!states.defined()) return states;
  const at::Tensor with_none = at::constant_pad_nd(states, {0, 0, 0, 1});
  std::vector<at::Tensor> parts;
  for (Index i = 0; i < states.size(0); ++i)
    parts.push_back(with_none.select(0, i).index_select(0, of[i % directions]));
  return at::stack(parts);
}

at::Tensor Gathered::put_back(const at::Tensor& states, int directions, const Indices& of,
                              const at::Tensor& through) const {
  std::vector<at::Tensor> parts;
  for (Index i = 0; i < states.size(0); ++i) {
    const at::Tensor all = at::zeros({callers_batch_ + 1, states.size(2)}, states.options());
    all.index_copy_(0, of[i % directions], states.select(0, i));
    parts.push_back(all.narrow(0, 0, callers_batch_));
  }
  const at::Tensor out = at::stack(parts);
  if (through.defined() && empty_.numel() > 0)
    out.index_copy_(1, empty_, through.index_select(1, empty_).to(out.scalar_type()));
  return out;
}

at::Tensor Gathered::initial(const at::Tensor& states, int directions) const {
  return select(states, directions, initial_);
}

at::Tensor Gathered::final(const at::Tensor& states, int directions) const {
  return select(states, directions, final_);
}

at::Tensor Gathered::initial_back(const at::Tensor& states, int directions, const at::Tensor& through) const {
  return put_back(states, directions, initial_, through);
}

at::Tensor Gathered::final_back(const at::Tensor& states, int directions, const at::Tensor& through) const {
  return put_back(states, directions, final_, through);
}

}  // namespace rnnfused
