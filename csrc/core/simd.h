// Vectors by compiler extension. A vector of one lane is the plain scalar, so the maths has one source for
// both: operators, comparisons and `mask ? a : b` mean the same on either.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/platform.h"

#if !defined(__CUDACC__) && (defined(__AVX2__) || defined(__AVX512F__))
#include <immintrin.h>
#elif !defined(__CUDACC__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace rnnfused::RNNFUSED_ISA {

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
struct VecOf<T, 1> {
  using type = T;
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

// Bytes of the vector registers this object is built for; a scalar build has one lane of any type.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#elif defined(__ARM_NEON)
constexpr int kVectorBytes = 16;
#else
constexpr int kVectorBytes = 0;
#endif

template <class T>
constexpr int kLanes = kVectorBytes == 0 ? 1 : kVectorBytes / int(sizeof(T));

template <class T>
using Native = Vec<T, kLanes<T>>;

// Scalar type, lane count and same-width integer vector of V.
template <class V>
struct Lanes {
  using Scalar = std::remove_reference_t<decltype(V{}[0])>;
  static constexpr int count = sizeof(V) / sizeof(Scalar);
  using Int = Vec<std::conditional_t<sizeof(Scalar) == 4, int32_t, int64_t>, count>;
};
template <>
struct Lanes<float> {
  using Scalar = float;
  static constexpr int count = 1;
  using Int = int32_t;
};
template <>
struct Lanes<double> {
  using Scalar = double;
  static constexpr int count = 1;
  using Int = int64_t;
};

template <class V>
using ScalarOf = typename Lanes<V>::Scalar;
template <class V>
using IntOf = typename Lanes<V>::Int;

// Unsigned: shifts and sums of bit patterns wrap instead of overflowing.
template <class V>
using UIntOf = Vec<std::conditional_t<sizeof(ScalarOf<V>) == 4, uint32_t, uint64_t>, Lanes<V>::count>;

template <class V>
RNNFUSED_HD V broadcast(ScalarOf<V> x) {
  return x - V{};  // x + 0 would turn -0 into 0, and so could not be left out by the compiler
}

template <class To, class From>
RNNFUSED_HD To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

// a * b + c, rounded once wherever the instruction set has it. The build forbids the compiler to contract on
// its own: the same expression then gives the same bits in every tile shape.
template <class V>
RNNFUSED_HD V fma(V a, V b, V c) {
#if defined(__CUDACC__)
  return ::fma(a, b, c);
#elif defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(ScalarOf<V>) == 4) {
    return V(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
  } else if constexpr (sizeof(V) == 64) {
    return V(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
  } else {
    static_assert(Lanes<V>::count == 1);
    return sizeof(V) == 4 ? V(__builtin_fmaf(float(a), float(b), float(c)))
                          : V(__builtin_fma(double(a), double(b), double(c)));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && sizeof(ScalarOf<V>) == 4) {
    return V(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
  } else if constexpr (sizeof(V) == 32) {
    return V(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
  } else {
    static_assert(Lanes<V>::count == 1);
    return sizeof(V) == 4 ? V(__builtin_fmaf(float(a), float(b), float(c)))
                          : V(__builtin_fma(double(a), double(b), double(c)));
  }
#elif defined(__ARM_NEON)
  if constexpr (sizeof(V) == 16 && sizeof(ScalarOf<V>) == 4) {
    return V(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
  } else if constexpr (sizeof(V) == 16) {
    return V(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
  } else {
    return sizeof(V) == 4 ? V(__builtin_fmaf(float(a), float(b), float(c)))
                          : V(__builtin_fma(double(a), double(b), double(c)));
  }
#else
  return a * b + c;
#endif
}

// Unaligned whole-vector and partial loads and stores. A partial load fills the missing lanes with zero.
template <class V>
RNNFUSED_HD V load(const ScalarOf<V>* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
RNNFUSED_HD void store(ScalarOf<V>* p, V v) {
  memcpy(p, &v, sizeof(V));
}

template <class V>
RNNFUSED_HD V load(const ScalarOf<V>* p, int64_t n) {
  if (n >= Lanes<V>::count) return load<V>(p);
  alignas(V) ScalarOf<V> lanes[Lanes<V>::count] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load<V>(lanes);
}

template <class V>
RNNFUSED_HD void store(ScalarOf<V>* p, V v, int64_t n) {
  if (n >= Lanes<V>::count) return store(p, v);
  alignas(V) ScalarOf<V> lanes[Lanes<V>::count];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

}  // namespace rnnfused::RNNFUSED_ISA
