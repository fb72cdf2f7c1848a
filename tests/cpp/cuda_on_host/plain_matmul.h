// Products for drivers that run on the emulator: in double, every sum over k in order, so that the bits of a
// result do not depend on the sizes of the product.
#pragma once

#include <cuda/ptx.cuh>
#include <vector>

#include "cuda/matmul.h"

namespace rnnfused {
namespace cuda {

// Calls body(T*) with the data as what it is.
template <class Body>
void with_type(Type type, const void* data, Body body) {
  void* p = const_cast<void*>(data);
  switch (type) {
    case Type::f32:
      return body(static_cast<float*>(p));
    case Type::f64:
      return body(static_cast<double*>(p));
    case Type::f16:
      return body(static_cast<Half*>(p));
    case Type::bf16:
      return body(static_cast<BFloat16*>(p));
  }
}

template <class T>
double to_double(T x) {
  if constexpr (sizeof(T) == 2) {
    return double(to_float(x));
  } else {
    return double(x);
  }
}

template <class T>
T from_double(double x) {
  if constexpr (sizeof(T) == 2) {
    return from_float<T>(float(x));
  } else {
    return T(x);
  }
}

class PlainMatmul : public Matmul {
 public:
  std::function<void()> prepare(const Product& product) override;
};

}  // namespace cuda
}  // namespace rnnfused
