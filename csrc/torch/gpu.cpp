#include "torch/gpu.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "torch/scalar_types.h"

namespace rnnfused::gpu {
namespace {

// torch's products: its own settings of TF32, of reduced precision and of determinism hold.
class TorchMatmul : public cuda::Matmul {
 public:
  explicit TorchMatmul(c10::Device device) : device_(device) {}

  std::function<void()> prepare(const cuda::Product& p) override {
    at::Tensor out = view(p.out, p.batch, p.m, p.n);
    const at::Tensor a = view(p.a, p.batch, p.m, p.k), b = view(p.b, p.batch, p.k, p.n);
    const bool widens = p.out.type != p.a.type;
    TORCH_INTERNAL_ASSERT(!p.accumulate || (p.batch == 1 && !widens));
    if (widens && p.a.type == cuda::Type::f16 && at::globalContext().allowFP16AccumulationCuBLAS()) {
      // cuBLAS has no float32 results of float16 sums, which is what the user asks for.
      at::Tensor narrow = at::empty(out.sizes(), a.options());
      return [=]() mutable { out.copy_(at::matmul_out(narrow, a, b)); };
    }
    if (p.accumulate) return [=]() mutable { at::addmm_out(out, out, a, b); };
    if (p.batch > 1 && widens) return [=]() mutable { at::bmm_out(out, a, b, out.scalar_type()); };
    if (p.batch > 1) return [=]() mutable { at::bmm_out(out, a, b); };
    if (widens) return [=]() mutable { at::mm_out(out, a, b, out.scalar_type()); };
    return [=]() mutable { at::mm_out(out, a, b); };
  }

 private:
  at::Tensor view(const cuda::Matrix& m, Index batch, Index rows, Index columns) const {
    return view_of(m, batch, rows, columns, device_);
  }

  c10::Device device_;
};

}  // namespace

bool serves(const c10::Device& device) { return device.is_cuda(); }

std::string places() { return "the CPU or a CUDA device"; }

bool allows_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

cuda::StreamHandle current_stream(const c10::Device& device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

// Enough rows for the input's projection to run at full rate, little beside a GPU's memory.
Index chunk_bytes() { return Index(256) << 20; }

std::unique_ptr<cuda::Matmul> matmul(const c10::Device& device) {
  return std::make_unique<TorchMatmul>(device);
}

}  // namespace rnnfused::gpu
