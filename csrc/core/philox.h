// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
// as 1, 2, 3", 2011): a number is a function of where it is wanted, so that nothing is stored and no order
// matters.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/simd.h"

namespace rnnfused {

// What a number is drawn for; with the direction a counter's second word.
enum class Draw : uint32_t { zoneout_h = 0, zoneout_c = 1, recurrent_dropout = 2 };

// Units that share kPhiloxCounters counters, each of which gives four words: unit u of a group has the word
// u / kPhiloxCounters of counter u % kPhiloxCounters.
constexpr int kPhiloxCounters = 16, kPhiloxGroup = 4 * kPhiloxCounters;

// Words below it are a share p of all.
RNNFUSED_HD uint64_t philox_threshold(double p) { return uint64_t(p * 4294967296.0); }

namespace RNNFUSED_ISA {

// The four words of each counter: `c` has the counters in its first row, in N vectors or scalars.
template <class U, int N>
RNNFUSED_HD void philox_counters(uint64_t seed, Draw what, int direction, uint64_t row, U (&c)[4][N]) {
  constexpr uint32_t kMultiply[] = {0xD2511F53, 0xCD9E8D57}, kWeyl[] = {0x9E3779B9, 0xBB67AE85};
  uint32_t key[] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int i = 0; i < N; ++i) {
    c[1][i] = U{} + (uint32_t(what) + 4 * uint32_t(direction));
    c[2][i] = U{} + uint32_t(row), c[3][i] = U{} + uint32_t(row >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      U high0, high2;
      const U low0 = multiply(c[0][i], kMultiply[0], high0), low2 = multiply(c[2][i], kMultiply[1], high2);
      c[0][i] = high2 ^ c[1][i] ^ key[0], c[1][i] = low2;
      c[2][i] = high0 ^ c[3][i] ^ key[1], c[3][i] = low0;
    }
    key[0] += kWeyl[0], key[1] += kWeyl[1];
  }
}

// The words of one group of units.
RNNFUSED_HD void philox_group(uint64_t seed, Draw what, int direction, uint64_t row, uint32_t group,
                              uint32_t (&out)[kPhiloxGroup]) {
  using U = Native<uint32_t>;
  constexpr int L = kLanes<uint32_t>, N = kPhiloxCounters / L;
  for (int i = 0; i < kPhiloxCounters; ++i) out[i] = group * kPhiloxCounters + uint32_t(i);
  U words[4][N];
  for (int i = 0; i < N; ++i) memcpy(&words[0][i], out + i * L, sizeof(U));
  philox_counters(seed, what, direction, row, words);
  memcpy(out, words, sizeof(words));
}

// That of one unit.
RNNFUSED_HD uint32_t philox_word(uint64_t seed, Draw what, int direction, uint64_t row, uint32_t unit) {
  constexpr uint32_t N = kPhiloxCounters;
  uint32_t words[4][1] = {{unit / kPhiloxGroup * N + unit % N}};
  philox_counters(seed, what, direction, row, words);
  const uint32_t word = unit % kPhiloxGroup / N;  // chosen without an index, which a GPU's registers have not
  const uint32_t low = word & 1 ? words[1][0] : words[0][0], high = word & 1 ? words[3][0] : words[2][0];
  return word & 2 ? high : low;
}

}  // namespace RNNFUSED_ISA
}  // namespace rnnfused
