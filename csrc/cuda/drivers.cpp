#include "cuda/drivers.h"

#include <stdexcept>

namespace rnnfused::cuda {

const CellDrivers& drivers(CellId cell, Type type) {
  switch (type) {
    case Type::f32:
      return stepwise<Type::f32>(cell);
    case Type::f64:
      return stepwise<Type::f64>(cell);
    case Type::f16:
      return stepwise<Type::f16>(cell);
    case Type::bf16:
      return stepwise<Type::bf16>(cell);
  }
  throw std::invalid_argument("type: no CUDA driver for type " + std::to_string(int(type)));
}

}  // namespace rnnfused::cuda
