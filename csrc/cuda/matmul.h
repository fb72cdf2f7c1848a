// Products of matrices as the drivers ask for them. Who multiplies is the caller's choice: torch does on a
// GPU, and with it its settings (TF32, determinism) hold.
#pragma once

#include <functional>

#include "cuda/layer.h"

namespace rnnfused::cuda {

// A batch of matrices in device memory; strides in elements.
struct Matrix {
  const void* data;
  Type type;
  Index batch_stride, row_stride, column_stride;
};

// out = a b, or out += a b: for each of `batch` entries [m, k] by [k, n]. Sums are kept in compute_type() of
// the operands' type; `out` is of that type or of the operands'.
struct Product {
  Index batch, m, n, k;
  Matrix out, a, b;
  bool accumulate = false;
};

class Matmul {
 public:
  virtual ~Matmul() = default;
  // What computes the product on the current stream, as often as it is called.
  virtual std::function<void()> prepare(const Product& product) = 0;

  void operator()(const Product& product) { prepare(product)(); }
};

}  // namespace rnnfused::cuda
