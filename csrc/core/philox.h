// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
// as 1, 2, 3", 2011): a number is a function of where it is wanted, so that nothing is stored and no order
// matters.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace rnnfused {

// What a number is drawn for; with the direction a counter's second word.
enum class Draw : uint32_t { zoneout_h = 0, zoneout_c = 1, recurrent_dropout = 2 };

// Units that share kPhiloxCounters counters, each of which gives four words: unit u of a group has the word
// u / kPhiloxCounters of counter u % kPhiloxCounters.
constexpr int kPhiloxCounters = 16, kPhiloxGroup = 4 * kPhiloxCounters;

// The words of N counters from `first` on. In loops over the counters, which compilers turn into vectors.
template <int N>
RNNFUSED_HD void philox_counters(uint64_t seed, Draw what, int direction, uint64_t row, uint32_t first,
                                 uint32_t (&c)[4][N]) {
  constexpr uint32_t kMultiply[] = {0xD2511F53, 0xCD9E8D57}, kWeyl[] = {0x9E3779B9, 0xBB67AE85};
  uint32_t key[] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int i = 0; i < N; ++i) {
    c[0][i] = first + uint32_t(i);
    c[1][i] = uint32_t(what) + 4 * uint32_t(direction);
    c[2][i] = uint32_t(row), c[3][i] = uint32_t(row >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t low = uint64_t(kMultiply[0]) * c[0][i], high = uint64_t(kMultiply[1]) * c[2][i];
      const uint32_t next0 = uint32_t(high >> 32) ^ c[1][i] ^ key[0];
      const uint32_t next2 = uint32_t(low >> 32) ^ c[3][i] ^ key[1];
      c[0][i] = next0, c[1][i] = uint32_t(high), c[2][i] = next2, c[3][i] = uint32_t(low);
    }
    key[0] += kWeyl[0], key[1] += kWeyl[1];
  }
}

// The words of one group of units.
RNNFUSED_HD void philox_group(uint64_t seed, Draw what, int direction, uint64_t row, uint32_t group,
                              uint32_t (&out)[kPhiloxGroup]) {
  constexpr int N = kPhiloxCounters;
  uint32_t words[4][N];
  philox_counters(seed, what, direction, row, group * N, words);
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < N; ++i) out[word * N + i] = words[word][i];
  }
}

// That of one unit.
RNNFUSED_HD uint32_t philox_word(uint64_t seed, Draw what, int direction, uint64_t row, uint32_t unit) {
  constexpr uint32_t N = kPhiloxCounters;
  uint32_t words[4][1];
  philox_counters(seed, what, direction, row, unit / kPhiloxGroup * N + unit % N, words);
  const uint32_t word = unit % kPhiloxGroup / N;  // chosen without an index, which a GPU's registers have not
  const uint32_t low = word & 1 ? words[1][0] : words[0][0], high = word & 1 ? words[3][0] : words[2][0];
  return word & 2 ? high : low;
}

// Words below it are a share p of all.
RNNFUSED_HD uint64_t philox_threshold(double p) { return uint64_t(p * 4294967296.0); }

}  // namespace rnnfused
