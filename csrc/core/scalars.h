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
template <class S>
using Compute = typename ComputeOf<S>::type;

// Whether numbers lose bits when they are stored.
template <class S>
constexpr bool kNarrow = !std::is_same_v<S, Compute<S>>;

}  // namespace rnnfused
