#include "cuda/drivers.h"

#include <stdexcept>

namespace rnnfused::cuda {
namespace {

// Calls body with what is compiled for the type.
template <class Body>
const CellDrivers& of_type(Type type, Body body) {
  switch (type) {
    case Type::f32:
      return body(Stepwisely<Type::f32>{});
    case Type::f64:
      return body(Stepwisely<Type::f64>{});
    case Type::f16:
      return body(Stepwisely<Type::f16>{});
    case Type::bf16:
      return body(Stepwisely<Type::bf16>{});
  }
  throw std::invalid_argument("type: no CUDA driver for type " + std::to_string(int(type)));
}

}  // namespace

const CellDrivers& drivers(CellId cell, Type type) {
  return of_type(type, [&](auto all) -> const CellDrivers& { return all.drivers(cell); });
}

const CellDrivers& varied_drivers(Type type) {
  return of_type(type, [](auto all) -> const CellDrivers& { return all.varied_drivers(); });
}

}  // namespace rnnfused::cuda
