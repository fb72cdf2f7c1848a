// The types that numbers are stored in, and the one that each is computed in.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rnnfused {

// IEEE binary16, and the upper half of a binary32. Own types: CUDA's headers collide with those of the host's
// emulation.
struct alignas(2) Half {
  uint16_t bits;
};
struct alignas(2) BFloat16 {
  uint16_t bits;
};
// A weight: what it stands for is the number times the scale of its row of the matrix.
struct Int8 {
  int8_t number;
};

template <class S>
struct ComputeOf {
  using type = S;
};
template <>
struct ComputeOf<Half> {
  using type = float;
};
template <>
struct ComputeOf<BFloat16> {
  using type = float;
};
template <>
struct ComputeOf<Int8> {
  using type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// So many products of two numbers of 8 bits, one of them without a sign, fit in a sum of 32 bits.
constexpr int64_t kMostInt8Terms = 65536;

// Whether weights are integers, and what they are multiplied with is rounded to integers, too.
template <class S>
constexpr bool kQuantized = std::is_same_v<S, Int8>;

// The type of the sequences that a layer with such weights reads and writes.
template <class S>
using Stored = std::conditional_t<kQuantized<S>, Compute<S>, S>;

// Whether these numbers lose bits when they are stored.
template <class S>
constexpr bool kNarrow = !std::is_same_v<Stored<S>, Compute<S>>;

// Whether they are computed in as they are stored. Layers of no other type attend or have options, and of no
// other are there tangents.
template <class S>
constexpr bool kAsComputed = !kNarrow<S> && !kQuantized<S>;

}  // namespace rnnfused
