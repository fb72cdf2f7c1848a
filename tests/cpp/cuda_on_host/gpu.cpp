// In the place of csrc/torch/gpu.cpp in the extension whose GPU is the emulator: tensors on the CPU take the
// CUDA drivers' way.
#include "torch/gpu.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include "torch/scalar_types.h"

namespace rnnfused::gpu {
namespace {

// Every sum runs over k in order, so that a result's bits do not depend on the sizes of the product.
template <class C>
void multiply(const cuda::Product& p, const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  const C *left = a.const_data_ptr<C>(), *right = b.const_data_ptr<C>();
  C* sums = out.mutable_data_ptr<C>();
  for (Index entry = 0; entry < p.batch; ++entry) {
    for (Index i = 0; i < p.m; ++i, left += p.k, sums += p.n) {
      for (Index k = 0; k < p.k; ++k) {
        for (Index j = 0; j < p.n; ++j) sums[j] += left[k] * right[k * p.n + j];
      }
    }
    right += p.k * p.n;
  }
}

class PlainMatmul : public cuda::Matmul {
 public:
  std::function<void()> prepare(const cuda::Product& p) override {
    const at::Tensor out = view_of(p.out, p.batch, p.m, p.n, at::kCPU);
    const at::Tensor a = view_of(p.a, p.batch, p.m, p.k, at::kCPU);
    const at::Tensor b = view_of(p.b, p.batch, p.k, p.n, at::kCPU);
    return [=] {
      const at::ScalarType type = scalar_type(cuda::compute_type(p.a.type));
      const at::Tensor left = a.to(type).contiguous(), right = b.to(type).contiguous();
      at::Tensor sums =
          (p.accumulate ? out.to(type, false, true) : at::zeros(out.sizes(), type)).contiguous();
      type == at::kDouble ? multiply<double>(p, left, right, sums) : multiply<float>(p, left, right, sums);
      out.copy_(sums);
    };
  }
};

}  // namespace

bool serves(const c10::Device& device) { return device.is_cpu(); }
std::string places() { return "the CPU (which plays the GPU)"; }
cuda::StreamHandle current_stream(const c10::Device&) { return nullptr; }
std::unique_ptr<cuda::Matmul> matmul(const c10::Device&) { return std::make_unique<PlainMatmul>(); }
Index chunk_bytes() { return 8 << 10; }  // so little that small tests run in several chunks

}  // namespace rnnfused::gpu
