// Vectors by compiler extension. A vector of one lane is the plain scalar, so the maths has one source for
// both: operators, comparisons and `mask ? a : b` mean the same on either.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/platform.h"

// Bytes of the vector registers this object is built for; without them every type has one lane. The scalar
// build says so itself: compilers for AArch64 always offer NEON.
#if defined(__CUDACC__) || defined(RNNFUSED_SCALAR)
#define RNNFUSED_VECTOR_BYTES 0
#elif defined(__AVX512F__)
#define RNNFUSED_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define RNNFUSED_VECTOR_BYTES 32
#elif defined(__ARM_NEON)
#define RNNFUSED_VECTOR_BYTES 16
#else
#define RNNFUSED_VECTOR_BYTES 0
#endif

#if RNNFUSED_VECTOR_BYTES >= 32
#include <immintrin.h>
#elif RNNFUSED_VECTOR_BYTES == 16
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

template <class T>
constexpr int kLanes = RNNFUSED_VECTOR_BYTES ? RNNFUSED_VECTOR_BYTES / int(sizeof(T)) : 1;

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
struct Lanes<int32_t> {
  using Scalar = int32_t;
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

// The instructions that have no operator. Of max and min: the second operand where either is NaN.
namespace instruction {
#if RNNFUSED_VECTOR_BYTES == 64
// In the form with a mask, of all lanes: the others warn of GCC's own header (GCC bug 105593).
#define RNNFUSED_INSTRUCTIONS(V, type)                                              \
  RNNFUSED_HD V fma(V a, V b, V c) { return _mm512_fmadd_##type(a, b, c); }         \
  RNNFUSED_HD V max(V a, V b) { return _mm512_maskz_max_##type(all_##type, a, b); } \
  RNNFUSED_HD V min(V a, V b) { return _mm512_maskz_min_##type(all_##type, a, b); } \
  RNNFUSED_HD V scale(V x, V n) { return _mm512_maskz_scalef_##type(all_##type, x, n); }
constexpr __mmask16 all_ps = 0xffff;
constexpr __mmask8 all_pd = 0xff;
RNNFUSED_INSTRUCTIONS(__m512, ps)
RNNFUSED_INSTRUCTIONS(__m512d, pd)
#elif RNNFUSED_VECTOR_BYTES == 32
#define RNNFUSED_INSTRUCTIONS(V, type)                                      \
  RNNFUSED_HD V fma(V a, V b, V c) { return _mm256_fmadd_##type(a, b, c); } \
  RNNFUSED_HD V max(V a, V b) { return _mm256_max_##type(a, b); }           \
  RNNFUSED_HD V min(V a, V b) { return _mm256_min_##type(a, b); }
RNNFUSED_INSTRUCTIONS(__m256, ps)
RNNFUSED_INSTRUCTIONS(__m256d, pd)
#elif RNNFUSED_VECTOR_BYTES == 16
#define RNNFUSED_INSTRUCTIONS(V, type)                               \
  RNNFUSED_HD V fma(V a, V b, V c) { return vfmaq_##type(c, a, b); } \
  RNNFUSED_HD V max(V a, V b) { return vmaxq_##type(a, b); }         \
  RNNFUSED_HD V min(V a, V b) { return vminq_##type(a, b); }
RNNFUSED_INSTRUCTIONS(float32x4_t, f32)
RNNFUSED_INSTRUCTIONS(float64x2_t, f64)
#endif
#undef RNNFUSED_INSTRUCTIONS

// A vector of 16 bytes from each of its places in turn, `stride` scalars apart: the loads do what shuffles
// across the vector would.
#if RNNFUSED_VECTOR_BYTES == 64
#define RNNFUSED_PIECES(T, V, as_ps, load)                           \
  RNNFUSED_HD V pieces(const T* p, int64_t stride) {                 \
    __m512 v = _mm512_castps128_ps512(as_ps(load(p)));               \
    v = _mm512_insertf32x4(v, as_ps(load(p + stride)), 1);           \
    v = _mm512_insertf32x4(v, as_ps(load(p + 2 * stride)), 2);       \
    return V(_mm512_insertf32x4(v, as_ps(load(p + 3 * stride)), 3)); \
  }
RNNFUSED_PIECES(float, __m512, , _mm_loadu_ps)
RNNFUSED_PIECES(double, __m512d, _mm_castpd_ps, _mm_loadu_pd)
#undef RNNFUSED_PIECES
#elif RNNFUSED_VECTOR_BYTES == 32
RNNFUSED_HD __m256 pieces(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
RNNFUSED_HD __m256d pieces(const double* p, int64_t stride) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(p + stride), 1);
}
#endif

#if RNNFUSED_VECTOR_BYTES == 64
using Words = __m512i;
RNNFUSED_HD Words multiply(Words a, uint32_t b, Words& high) {
  constexpr __mmask16 odds = 0xaaaa;
  const __m512i factor = _mm512_set1_epi32(int(b));
  const __m512i even = _mm512_maskz_mul_epu32(all_pd, a, factor);
  const __m512i odd = _mm512_maskz_mul_epu32(all_pd, _mm512_maskz_srli_epi64(all_pd, a, 32), factor);
  high = _mm512_mask_mov_epi32(_mm512_maskz_srli_epi64(all_pd, even, 32), odds, odd);
  return _mm512_mask_mov_epi32(even, odds, _mm512_maskz_slli_epi64(all_pd, odd, 32));
}
#elif RNNFUSED_VECTOR_BYTES == 32
using Words = __m256i;
RNNFUSED_HD Words multiply(Words a, uint32_t b, Words& high) {
  constexpr int odds = 0xaa;
  const __m256i factor = _mm256_set1_epi32(int(b));
  const __m256i even = _mm256_mul_epu32(a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, odds);
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), odds);
}
#elif RNNFUSED_VECTOR_BYTES == 16
using Words = uint32x4_t;
RNNFUSED_HD Words multiply(Words a, uint32_t b, Words& high) {
  const uint32x4_t first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vdup_n_u32(b)));
  const uint32x4_t second = vreinterpretq_u32_u64(vmull_high_u32(a, vdupq_n_u32(b)));
  high = vuzp2q_u32(first, second);
  return vuzp1q_u32(first, second);
}
#endif

// The first n lanes, 0 < n < all. AddressSanitizer looks at no mask: its builds go lane by lane. AVX2 has
// masked stores as well, which some processors are slow at.
#if RNNFUSED_VECTOR_BYTES == 64 && !defined(__SANITIZE_ADDRESS__)
#define RNNFUSED_MASKED 1
RNNFUSED_HD __m512 load(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
RNNFUSED_HD __m512d load(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
RNNFUSED_HD void store(float* p, __m512 v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
RNNFUSED_HD void store(double* p, __m512d v, int64_t n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
}
#elif RNNFUSED_VECTOR_BYTES == 32 && !defined(__SANITIZE_ADDRESS__)
#define RNNFUSED_MASKED 1
RNNFUSED_HD __m256 load(const float* p, int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane));
}
RNNFUSED_HD __m256d load(const double* p, int64_t n) {
  return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
}
#else
#define RNNFUSED_MASKED 0
#endif
}  // namespace instruction

// a * b + c, rounded once wherever the instruction set has it. The build forbids the compiler to contract on
// its own: the same expression then gives the same bits in every tile shape.
template <class V>
RNNFUSED_HD V fma(V a, V b, V c) {
#if defined(__CUDACC__)
  return ::fma(a, b, c);
#elif RNNFUSED_VECTOR_BYTES == 0
  return a * b + c;
#else
  if constexpr (Lanes<V>::count > 1) return V(instruction::fma(a, b, c));
  if constexpr (Lanes<V>::count == 1 && sizeof(V) == 4) return __builtin_fmaf(a, b, c);
  if constexpr (Lanes<V>::count == 1 && sizeof(V) == 8) return __builtin_fma(a, b, c);
#endif
}

// Of products of 32-bit words the low words, and the high ones.
RNNFUSED_HD uint32_t multiply(uint32_t a, uint32_t b, uint32_t& high) {
  const uint64_t product = uint64_t(a) * b;
  high = uint32_t(product >> 32);
  return uint32_t(product);
}
#if RNNFUSED_VECTOR_BYTES > 0
RNNFUSED_HD Native<uint32_t> multiply(Native<uint32_t> a, uint32_t b, Native<uint32_t>& high) {
  instruction::Words upper;
  const instruction::Words lower = instruction::multiply(instruction::Words(a), b, upper);
  high = Native<uint32_t>(upper);
  return Native<uint32_t>(lower);
}
#endif

// x where it is above (below) the bound, else the bound; NaN stays NaN.
template <class V>
RNNFUSED_HD V at_least(V x, ScalarOf<V> bound) {
#if RNNFUSED_VECTOR_BYTES > 0
  if constexpr (Lanes<V>::count > 1) return V(instruction::max(broadcast<V>(bound), x));
#endif
  return x < bound ? broadcast<V>(bound) : x;
}

template <class V>
RNNFUSED_HD V at_most(V x, ScalarOf<V> bound) {
#if RNNFUSED_VECTOR_BYTES > 0
  if constexpr (Lanes<V>::count > 1) return V(instruction::min(broadcast<V>(bound), x));
#endif
  return x > bound ? broadcast<V>(bound) : x;
}

#if defined(__clang__)
template <int E, class V, int... I>
RNNFUSED_HD void interleave_lanes(V a, V b, V& low, V& high, std::integer_sequence<int, I...>) {
  constexpr int L = Lanes<V>::count;
  low = __builtin_shufflevector(a, b, (I - I % E + I % E / 2 + (I % 2) * L)...);
  high = __builtin_shufflevector(a, b, (I - I % E + I % E / 2 + (I % 2) * L + E / 2)...);
}
#endif

// low = a0 b0 a1 b1 ... from the lower halves of a and b, high likewise from the upper ones; or so within
// each `Within` lanes.
template <int Within = 0, class V>
RNNFUSED_HD void interleave(V a, V b, V& low, V& high) {
  constexpr int L = Lanes<V>::count, E = Within ? Within : L;
#if defined(__clang__)
  interleave_lanes<E>(a, b, low, high, std::make_integer_sequence<int, L>{});
#else
  IntOf<V> first{}, second{};
  for (int i = 0; i < L; ++i) {
    first[i] = i - i % E + i % E / 2 + (i % 2) * L;
    second[i] = first[i] + E / 2;
  }
  low = __builtin_shuffle(a, b, first);
  high = __builtin_shuffle(a, b, second);
#endif
}

// Lane i is the sum of the lanes of v[i]: in every round pairs of vectors become one of twice as many sums.
template <class T>
RNNFUSED_HD Native<T> lane_sums(Native<T> (&v)[kLanes<T>]) {
  if constexpr (kLanes<T> > 1) {
    for (int half = kLanes<T> / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        Native<T> low, high;
        interleave(v[i], v[i + half], low, high);
        v[i] = low + high;
      }
    }
  }
  return v[0];
}

// Unaligned whole-vector and partial loads and stores. A partial load fills the missing lanes with zero.
template <class V>
struct InMemory {
  typedef V type __attribute__((aligned(alignof(ScalarOf<V>)), may_alias));
};

template <class V>
RNNFUSED_HD V load(const ScalarOf<V>* p) {
  return *reinterpret_cast<const typename InMemory<V>::type*>(p);
}

template <class V>
RNNFUSED_HD void store(ScalarOf<V>* p, V v) {
  *reinterpret_cast<typename InMemory<V>::type*>(p) = v;
}

template <class V>
RNNFUSED_HD V load(const ScalarOf<V>* p, int64_t n) {
  if (n >= Lanes<V>::count) return load<V>(p);
#if RNNFUSED_MASKED
  if constexpr (Lanes<V>::count > 1) return n > 0 ? V(instruction::load(p, n)) : V{};
#endif
  alignas(V) ScalarOf<V> lanes[Lanes<V>::count] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load<V>(lanes);
}

template <class V>
RNNFUSED_HD void store(ScalarOf<V>* p, V v, int64_t n) {
  if (n >= Lanes<V>::count) return store(p, v);
#if RNNFUSED_MASKED && RNNFUSED_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count > 1) {
    if (n > 0) instruction::store(p, v, n);
    return;
  }
#endif
  alignas(V) ScalarOf<V> lanes[Lanes<V>::count];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// The first n lanes, zero in the others.
template <class V>
RNNFUSED_HD V first_lanes(V v, int64_t n) {
  if (n >= Lanes<V>::count) return v;
  alignas(V) ScalarOf<V> lanes[Lanes<V>::count];
  store(lanes, v);
  return load<V>(lanes, n);
}

template <class V>
RNNFUSED_HD ScalarOf<V> sum_of_lanes(V v) {
  alignas(V) ScalarOf<V> lanes[Lanes<V>::count];
  store(lanes, v);
  for (int64_t half = Lanes<V>::count / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace rnnfused::RNNFUSED_ISA
