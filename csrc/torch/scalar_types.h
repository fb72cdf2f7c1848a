// torch's names for the CUDA drivers' types, and tensors for their matrices.
#pragma once

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include "cuda/matmul.h"

namespace rnnfused {

inline cuda::Type cuda_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return cuda::Type::f32;
    case at::kDouble:
      return cuda::Type::f64;
    case at::kHalf:
      return cuda::Type::f16;
    default:
      TORCH_INTERNAL_ASSERT(type == at::kBFloat16);
      return cuda::Type::bf16;
  }
}

inline at::ScalarType scalar_type(cuda::Type type) {
  switch (type) {
    case cuda::Type::f32:
      return at::kFloat;
    case cuda::Type::f64:
      return at::kDouble;
    case cuda::Type::f16:
      return at::kHalf;
    default:
      TORCH_INTERNAL_ASSERT(type == cuda::Type::bf16);
      return at::kBFloat16;
  }
}

// [rows, columns], or [batch, rows, columns] of a batch of several.
inline at::Tensor view_of(const cuda::Matrix& m, Index batch, Index rows, Index columns,
                          const c10::Device& device) {
  const at::TensorOptions options = at::TensorOptions().dtype(scalar_type(m.type)).device(device);
  const auto make = [&](at::IntArrayRef sizes, at::IntArrayRef strides) {
    // Told the device, torch need not ask the driver whose memory it is.
    return at::for_blob(const_cast<void*>(m.data), sizes)
        .strides(strides)
        .options(options)
        .target_device(device)
        .make_tensor();
  };
  if (batch == 1) return make({rows, columns}, {m.row_stride, m.column_stride});
  return make({batch, rows, columns}, {m.batch_stride, m.row_stride, m.column_stride});
}

}  // namespace rnnfused
