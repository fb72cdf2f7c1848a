// 8-bit weights, and rows of numbers that are rounded to 8 bits in order to be multiplied with them. The
// products are sums of integers, exact and the same on every machine; all else is computed in float32.
//
// A row's scale is the largest of its numbers divided by 127: numbers become the nearest of 127 steps on each
// side of zero.
#pragma once

#include "cpu/narrow.h"

namespace rnnfused::RNNFUSED_ISA {

// The terms of a product that lie in a lane, what a row of the left operand is made of, and what is added to
// each of its numbers. Pairs are widened to 16 bits on the way, where no instruction multiplies bytes without
// saturation.
template <>
struct FactorsOf<Int8> {
#if defined(__AVX512VNNI__)
  static constexpr int terms = 4, offset = 128;
  using Left = uint8_t;
#elif RNNFUSED_VECTOR_BYTES >= 32
  static constexpr int terms = 2, offset = 0;
  using Left = int16_t;
#elif defined(__ARM_FEATURE_DOTPROD) && RNNFUSED_VECTOR_BYTES == 16
  static constexpr int terms = 4, offset = 0;
  using Left = int8_t;
#elif RNNFUSED_VECTOR_BYTES == 16
  static constexpr int terms = 2, offset = 0;
  using Left = int8_t;
#else
  static constexpr int terms = 1, offset = 0;
  using Left = int8_t;
#endif
  using Sum = int32_t;
};
template <>
constexpr int kTerms<Int8> = FactorsOf<Int8>::terms;

// The terms of all lanes: bytes, or where pairs are widened twice as many.
template <>
struct TermsOf<Int8, false> {
#if RNNFUSED_VECTOR_BYTES == 16 && defined(__ARM_FEATURE_DOTPROD)
  using type = int8x16_t;
#elif RNNFUSED_VECTOR_BYTES == 16
  using type = int8x8_t;
#else
  using type = UIntOf<Native<float> >;
#endif
};

template <>
RNNFUSED_HD Terms<Int8> load_terms<Int8, Int8>(const Int8* p) {
#if defined(__AVX512VNNI__) || RNNFUSED_VECTOR_BYTES == 16
  Terms<Int8> terms;
  memcpy(&terms, p, sizeof terms);
  return terms;
#elif RNNFUSED_VECTOR_BYTES == 64
  return Terms<Int8>(_mm512_maskz_cvtepi8_epi16(~__mmask32(0), _mm256_loadu_si256((const __m256i*)(p))));
#elif RNNFUSED_VECTOR_BYTES == 32
  return Terms<Int8>(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p))));
#else
  return Terms<Int8>(p->number);
#endif
}

template <>
RNNFUSED_HD Terms<Int8> broadcast_terms<Int8>(const Left<Int8>* p) {
#if RNNFUSED_VECTOR_BYTES == 16 && defined(__ARM_FEATURE_DOTPROD)
  uint32_t terms;
  memcpy(&terms, p, sizeof terms);
  return vreinterpretq_s8_u32(vdupq_n_u32(terms));
#elif RNNFUSED_VECTOR_BYTES == 16
  uint16_t terms;
  memcpy(&terms, p, sizeof terms);
  return vreinterpret_s8_u16(vdup_n_u16(terms));
#elif RNNFUSED_VECTOR_BYTES > 0
  uint32_t terms;
  memcpy(&terms, p, sizeof terms);
  return Terms<Int8>{} + terms;
#else
  return Terms<Int8>(*p);
#endif
}

template <>
RNNFUSED_HD Native<int32_t> add_product<Int8>(Terms<Int8> left, Terms<Int8> right, Native<int32_t> acc) {
#if defined(__AVX512VNNI__)
  return (Native<int32_t>)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)left, (__m512i)right);
#elif RNNFUSED_VECTOR_BYTES == 64
  return acc + (Native<int32_t>)_mm512_madd_epi16((__m512i)left, (__m512i)right);
#elif RNNFUSED_VECTOR_BYTES == 32
  return acc + (Native<int32_t>)_mm256_madd_epi16((__m256i)left, (__m256i)right);
#elif defined(__ARM_FEATURE_DOTPROD) && RNNFUSED_VECTOR_BYTES == 16
  return vdotq_s32(acc, left, right);
#elif RNNFUSED_VECTOR_BYTES == 16
  return vpadalq_s16(acc, vmull_s8(left, right));
#else
  return acc + int32_t(left) * int32_t(right);
#endif
}

// As pack_rows (cpu/pack.h) does with terms that are floats.
RNNFUSED_HD void pack_numbers(const Int8* rows, int64_t row_stride, int64_t lanes, int64_t size, Int8* out,
                              int64_t stride) {
  constexpr int64_t L = kLanes<float>, P = kTerms<Int8>;
  for (int64_t k = 0; k < size; k += P) {
    for (int64_t lane = 0; lane < L; ++lane) {
      Int8* const to = out + k * stride + lane * P;
      for (int64_t i = 0; i < P; ++i)
        to[i] = lane < lanes && k + i < size ? rows[lane * row_stride + k + i] : Int8{0};
    }
  }
}

// Where the sums of a vector of rows of a matrix begin: what the left operand's offset adds to each is taken
// off.
RNNFUSED_HD void store_starts(const Int8* rows, int64_t row_stride, int64_t lanes, int64_t size,
                              int32_t* out) {
  for (int64_t lane = 0; lane < kLanes<float>; ++lane) {
    int32_t sum = 0;
    for (int64_t k = 0; FactorsOf<Int8>::offset != 0 && lane < lanes && k < size; ++k)
      sum += rows[lane * row_stride + k].number;
    out[lane] = -FactorsOf<Int8>::offset * sum;
  }
}

template <class I>
RNNFUSED_HD int32_t largest_lane(I lanes) {
  if constexpr (Lanes<I>::count == 1) {
    return lanes;
  } else {
    for (int half = Lanes<I>::count / 2; half > 0; half /= 2) {
      I low, high;
      interleave(lanes, lanes, low, high);
      lanes = low > high ? low : high;
    }
    return lanes[0];
  }
}

// A row of the left operand from `size` numbers, with zeros up to whole vectors; returns its scale. Rows of
// numbers that are too small to be divided by are zero; one that is not finite has the scale NaN, and so is
// all that comes from it.
RNNFUSED_HD float round_row(const float* from, int64_t size, Left<Int8>* out) {
  using V = Native<float>;
  using I = IntOf<V>;
  constexpr int64_t L = kLanes<float>;
  constexpr int32_t kInfinite = 0x7f800000;
  I magnitudes{};
  for (int64_t k = 0; k < size; k += L) {
    const I bits = bit_cast<I>(load<V>(from + k, size - k)) & 0x7fffffff;
    magnitudes = bits > magnitudes ? bits : magnitudes;
  }
  const int32_t most = largest_lane(magnitudes);
  const bool finite = most < kInfinite;
  const float largest = bit_cast<float>(most);
  using Lefts = Vec<Left<Int8>, L>;
  if (!finite || largest < 1e-36f) {
    const Lefts zeros = convert_lanes<Lefts>(I{} + FactorsOf<Int8>::offset);
    for (int64_t k = 0; k < size; k += L) memcpy(out + k, &zeros, sizeof zeros);
    return finite ? 0.0f : largest - largest;
  }
  // A sum with it rounds to an integer, which its lowest bits are.
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  const I base = bit_cast<I>(broadcast<V>(kRound)) - FactorsOf<Int8>::offset;
  const float steps = 127.0f / largest;
  for (int64_t k = 0; k < size; k += L) {
    const V scaled = load<V>(from + k, size - k) * steps + kRound;
    const Lefts numbers = convert_lanes<Lefts>(bit_cast<I>(scaled) - base);
    memcpy(out + k, &numbers, sizeof numbers);
  }
  return largest / 127.0f;
}

}  // namespace rnnfused::RNNFUSED_ISA
