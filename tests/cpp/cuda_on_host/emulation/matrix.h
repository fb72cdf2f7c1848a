// Tensor core instructions. Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma".
#pragma once

#include <cstdint>

#include "emulation/half.h"
#include "emulation/shared.h"

namespace rnnfused {
namespace emulation {

void load_matrices(uint32_t* fragments, int count, Block* block, std::ptrdiff_t offset, Site site);

enum class Operand { half, bfloat16, tf32 };
void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, Operand type, Site site);

template <class T>
struct OperandOf;
template <>
struct OperandOf<Half> {
  static constexpr Operand value = Operand::half;
};
template <>
struct OperandOf<BFloat16> {
  static constexpr Operand value = Operand::bfloat16;
};

}  // namespace emulation

namespace cuda {

// N 8x8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8, 16 bytes; it gets
// elements 2 * (i % 4) and the next of row i / 4 of each matrix.
template <int N, class T>
void ldmatrix(uint32_t (&fragments)[N], Shared<T> row, emulation::Site site = emulation::Site::here()) {
  static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
  emulation::load_matrices(fragments, N, row.block(), row.offset(), site);
}

// d += a b, with a 16x16 and b 16x8 of T (Half or BFloat16), d 16x8 of float.
template <class T>
void mma_sync(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              emulation::Site site = emulation::Site::here()) {
  emulation::multiply_accumulate(d, a, b, emulation::OperandOf<T>::value, site);
}
// d += a b, with a 16x8 and b 8x8 of TF32, d 16x8 of float.
inline void mma_sync_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                          emulation::Site site = emulation::Site::here()) {
  emulation::multiply_accumulate(d, a, b, emulation::Operand::tf32, site);
}
// Rounded to nearest, ties away from zero.
inline uint32_t to_tf32(float value) {
  const uint32_t bits = emulation::float_bits(value);
  if ((bits & 0x7f800000) == 0x7f800000) return (bits & 0x7fffff) ? 0x7fffffff : bits;
  return (bits + 0x1000) & ~0x1fffu;
}

}  // namespace cuda
}  // namespace rnnfused
