// In the place of csrc/torch/gpu.cpp in the extension whose GPU is the emulator: tensors on the CPU take the
// CUDA drivers' way.
#include "torch/gpu.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include "torch/scalar_types.h"

namespace rnnfused::gpu {
namespace {

// sums += left right in double, every sum over k in order: the bits of a result do not depend on the sizes of
// the product.
void multiply(const cuda::Product& p, const double* left, const double* right, double* sums) {
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
      const at::Tensor left = a.to(at::kDouble).contiguous(), right = b.to(at::kDouble).contiguous();
      const at::Tensor sums =
          p.accumulate ? out.to(at::kDouble, false, true).contiguous() : at::zeros(out.sizes(), at::kDouble);
      multiply(p, left.const_data_ptr<double>(), right.const_data_ptr<double>(),
               sums.mutable_data_ptr<double>());
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
