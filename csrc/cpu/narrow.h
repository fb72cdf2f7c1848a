// 16-bit numbers: read into vectors of float, written from them with one rounding to nearest even, and as
// operands of the instructions that multiply them as they are stored, in pairs.
#pragma once

#include "core/scalars.h"
#include "core/simd.h"

namespace rnnfused::RNNFUSED_ISA {

// ---- Between 16 bits and float

// The bits of as many 16-bit numbers as V has lanes.
template <class V>
using Bits16 = Vec<uint16_t, Lanes<V>::count>;

template <class To, class From>
RNNFUSED_HD To convert_lanes(From x) {
  if constexpr (std::is_arithmetic_v<From>) {
    return To(x);
  } else {
    return __builtin_convertvector(x, To);
  }
}

template <class V>
RNNFUSED_HD Bits16<V> load_bits(const void* p) {
  Bits16<V> bits;
  memcpy(&bits, p, sizeof bits);
  return bits;
}

// The first n, 0 <= n; zeros in the lanes beyond them.
template <class V, class S>
RNNFUSED_HD Bits16<V> load_bits(const S* p, int64_t n) {
  constexpr int L = Lanes<V>::count;
  if (n >= L) return load_bits<V>(p);
#if RNNFUSED_MASKED && RNNFUSED_VECTOR_BYTES == 64
  if constexpr (L == 16)
    return n > 0 ? Bits16<V>(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)) : Bits16<V>{};
#endif
  uint16_t lanes[L] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i].bits;
  return load_bits<V>(lanes);
}

// In one instruction where there is one: compilers take a vector apart for it.
template <class V>
RNNFUSED_HD UIntOf<V> widened(Bits16<V> bits) {
#if RNNFUSED_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count == 16) return (UIntOf<V>)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits);
#elif RNNFUSED_VECTOR_BYTES == 32
  if constexpr (Lanes<V>::count == 8) return (UIntOf<V>)_mm256_cvtepu16_epi32((__m128i)bits);
#endif
  return convert_lanes<UIntOf<V>>(bits);
}

// Of numbers that have no more bits.
template <class V>
RNNFUSED_HD Bits16<V> lower_halves(UIntOf<V> u) {
#if RNNFUSED_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count == 16) return (Bits16<V>)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)u);
#elif RNNFUSED_VECTOR_BYTES == 32
  if constexpr (Lanes<V>::count == 8) {
    const __m256i all = (__m256i)u;
    return (Bits16<V>)_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  }
#endif
  return convert_lanes<Bits16<V>>(u);
}

template <class V>
RNNFUSED_HD V to_float(Bits16<V> bits, BFloat16) {
  return bit_cast<V>(widened<V>(bits) << 16);
}

// The bits of a float whose upper half is v's bfloat16; the lower half is of no account.
template <class V>
RNNFUSED_HD UIntOf<V> rounded_bits(V v) {
  using U = UIntOf<V>;
  const U u = bit_cast<U>(v), rounded = u + 0x7fffu + ((u >> 16) & 1u), quiet = u | 0x400000u;
  return v != v ? quiet : rounded;
}

template <class V>
RNNFUSED_HD Bits16<V> from_float(V v, BFloat16) {
#if defined(__AVX512BF16__)
  if constexpr (Lanes<V>::count == 16) return (Bits16<V>)_mm512_cvtneps_pbh(v);
#endif
  return lower_halves<V>(rounded_bits(v) >> 16);
}

template <class V>
RNNFUSED_HD V to_float(Bits16<V> bits, Half) {
#if RNNFUSED_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count == 16) return _mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#elif RNNFUSED_VECTOR_BYTES == 32
  if constexpr (Lanes<V>::count == 8) return _mm256_cvtph_ps((__m128i)bits);
#endif
  // Exponents are rebiased; of denormal numbers, which have none, the sum with a power of two makes them.
  using U = UIntOf<V>;
  const U u = widened<V>(bits), magnitude = (u & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
  const U normal = magnitude + (112u << 23);
  const V denormal = bit_cast<V>(magnitude + (113u << 23)) - bit_cast<V>(U{} + (113u << 23));
  const U infinite = normal + (112u << 23);
  const U found = exponent == 0u ? bit_cast<U>(denormal) : exponent == 0x0f800000u ? infinite : normal;
  return bit_cast<V>(found | ((u & 0x8000u) << 16));
}

template <class V>
RNNFUSED_HD Bits16<V> from_float(V v, Half) {
#if RNNFUSED_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count == 16)
    return (Bits16<V>)_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT);
#elif RNNFUSED_VECTOR_BYTES == 32
  if constexpr (Lanes<V>::count == 8) return (Bits16<V>)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#endif
  using U = UIntOf<V>;
  const U u = bit_cast<U>(v), magnitude = u & 0x7fffffffu;
  const U beyond = magnitude > 0x7f800000u ? U{} + 0x7e00u : U{} + 0x7c00u;
  // A sum with 0.5 leaves a denormal number of 16 bits, rounded, in the lowest bits.
  const U denormal = bit_cast<U>(bit_cast<V>(magnitude) + 0.5f) - bit_cast<U>(broadcast<V>(0.5f));
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U found = magnitude >= 0x47800000u ? beyond : magnitude < 0x38800000u ? denormal : normal;
  return convert_lanes<Bits16<V>>(found | ((u >> 16) & 0x8000u));
}

// v as it is once it was stored.
template <class V>
RNNFUSED_HD V rounded(V v, BFloat16) {
  return bit_cast<V>(rounded_bits(v) & 0xffff0000u);
}
template <class V>
RNNFUSED_HD V rounded(V v, Half) {
  return to_float<V>(from_float(v, Half{}), Half{});
}

// As the loads and stores of simd.h.
template <class V, class S, class = std::enable_if_t<kNarrow<S>>>
RNNFUSED_HD V load(const S* p) {
  return to_float<V>(load_bits<V>(p), S{});
}

template <class V, class S, class = std::enable_if_t<kNarrow<S>>>
RNNFUSED_HD V load(const S* p, int64_t n) {
  return to_float<V>(load_bits<V>(p, n), S{});
}

template <class V, class S, class = std::enable_if_t<kNarrow<S>>>
RNNFUSED_HD void store(S* p, V v) {
  const Bits16<V> bits = from_float(v, S{});
  memcpy(p, &bits, sizeof bits);
}

template <class V, class S, class = std::enable_if_t<kNarrow<S>>>
RNNFUSED_HD void store(S* p, V v, int64_t n) {
  constexpr int L = Lanes<V>::count;
  if (n >= L) return store(p, v);
  const Bits16<V> bits = from_float(v, S{});
#if RNNFUSED_MASKED && RNNFUSED_VECTOR_BYTES == 64
  if constexpr (L == 16) {
    if (n > 0) _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)bits);
    return;
  }
#endif
  uint16_t lanes[L];
  memcpy(lanes, &bits, sizeof bits);
  for (int64_t i = 0; i < n; ++i) p[i].bits = lanes[i];
}

// ---- Operands of products

// Whether numbers of a type are multiplied as they are stored, two of each operand at a time:
// acc[lane] += a[2 lane] b[2 lane] + a[2 lane + 1] b[2 lane + 1].
template <class S>
constexpr bool kDots = false;
#if defined(__AVX512BF16__) || (defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && RNNFUSED_VECTOR_BYTES == 16)
template <>
constexpr bool kDots<BFloat16> = true;
#endif

// Whether they are widened before they are multiplied.
template <class S>
constexpr bool kWidens = kNarrow<S> && !kDots<S>;

// What a panel of numbers of a type holds, and how many terms of a product lie in one of its lanes.
template <class S>
using Operand = std::conditional_t<kWidens<S>, Compute<S>, S>;
template <class S>
constexpr int kTerms = kDots<S> ? 2 : 1;

// What the rows of a product's left operand hold, and what it is summed in.
template <class S>
struct FactorsOf {
  using Left = Operand<S>;
  using Sum = Compute<S>;
};
template <class S>
using Left = typename FactorsOf<S>::Left;
template <class S>
using Sum = typename FactorsOf<S>::Sum;

template <class S, bool dots = kDots<S>>
struct TermsOf {
  using type = Native<Compute<S>>;
};
template <class S>
struct TermsOf<S, true> {
  using type = UIntOf<Native<Compute<S>>>;
};
// A term of every lane, or two.
template <class S>
using Terms = typename TermsOf<S>::type;

// The scalars of a row, one after another.
template <class S, class From>
RNNFUSED_HD Terms<S> load_terms(const From* p) {
  if constexpr (kDots<S>) {
    Terms<S> terms;
    memcpy(&terms, p, sizeof terms);
    return terms;
  } else {
    return load<Terms<S>>(p);
  }
}

// The first n of them; zeros beyond.
template <class S>
RNNFUSED_HD Terms<S> load_terms(const S* p, int64_t n) {
  if constexpr (kDots<S>) {
    constexpr int count = 2 * kLanes<Compute<S>>;
    if (n >= count) return load_terms<S>(p);
#if RNNFUSED_MASKED && RNNFUSED_VECTOR_BYTES == 64
    return n > 0 ? Terms<S>(_mm512_maskz_loadu_epi16(__mmask32((1u << n) - 1), p)) : Terms<S>{};
#else
    S all[count] = {};
    for (int64_t i = 0; i < n; ++i) all[i] = p[i];
    return load_terms<S>(all);
#endif
  } else {
    return load<Terms<S>>(p, n);
  }
}

// The first n columns of a row, or where terms go in pairs of two rows; the second may be null: zeros.
template <class S>
RNNFUSED_HD Terms<S> join_rows(const S* row, [[maybe_unused]] const S* next, int64_t n) {
  if constexpr (kDots<S>) {
    using V = Native<Compute<S>>;
    const Terms<S> first = widened<V>(load_bits<V>(row, n));
    return next ? first | widened<V>(load_bits<V>(next, n)) << 16 : first;
  } else {
    return load<Terms<S>>(row, n);
  }
}

// As a product reads them, or as they were stored.
template <class S, class To>
RNNFUSED_HD void store_terms(To* p, Terms<S> terms) {
  if constexpr (std::is_same_v<To, Operand<S>>) {
    memcpy(p, &terms, sizeof terms);
  } else {
    store(p, terms);
  }
}

// The same in every lane: the scalars at p, or the last of a row of an odd number.
template <class S>
RNNFUSED_HD Terms<S> broadcast_terms(const Left<S>* p) {
  if constexpr (kDots<S>) {
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return Terms<S>{} + pair;
  } else {
    return broadcast<Terms<S>>(*p);
  }
}

template <class S>
RNNFUSED_HD Terms<S> broadcast_last(const Left<S>* p) {
  if constexpr (kDots<S>) {
    return Terms<S>{} + uint32_t(p->bits);
  } else {
    return broadcast_terms<S>(p);
  }
}

template <class S>
RNNFUSED_HD Native<Sum<S>> add_product(Terms<S> a, Terms<S> b, Native<Sum<S>> acc) {
  if constexpr (kDots<S>) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && RNNFUSED_VECTOR_BYTES == 16
    return vbfdotq_f32(acc, vreinterpretq_bf16_u32(a), vreinterpretq_bf16_u32(b));
#endif
  } else {
    return fma(a, b, acc);
  }
}

}  // namespace rnnfused::RNNFUSED_ISA
