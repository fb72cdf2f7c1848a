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

// The words of one group of units. In loops over the counters, which compilers turn into vectors.
RNNFUSED_HD void philox_group(uint64_t seed, Draw what, int direction, uint64_t row, uint32_t group,
                              uint32_t (&out)[kPhiloxGroup]) {
  constexpr uint32_t kMultiply[] = {0xD2511F53, 0xCD9E8D57}, kWeyl[] = {0x9E3779B9, 0xBB67AE85};
  constexpr int N = kPhiloxCounters;
  uint32_t c[4][N], key[] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int i = 0; i < N; ++i) {
    c[0][i] = group * N + uint32_t(i);
    c[1][i] = uint32_t(what) + 4 * uint32_t(direction);
    c[2][i] = uint32_t(row), c[3][i] = uint32_t(row >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t first = uint64_t(kMultiply[0]) * c[0][i], second = uint64_t(kMultiply[1]) * c[2][i];
      const uint32_t next0 = uint32_t(second >> 32) ^ c[1][i] ^ key[0];
      const uint32_t next2 = uint32_t(first >> 32) ^ c[3][i] ^ key[1];
      c[0][i] = next0, c[1][i] = uint32_t(second), c[2][i] = next2, c[3][i] = uint32_t(first);
    }
    key[0] += kWeyl[0], key[1] += kWeyl[1];
  }
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < N; ++i) out[word * N + i] = c[word][i];
  }
}

// Words below it are a share p of all.
RNNFUSED_HD uint64_t philox_threshold(double p) { return uint64_t(p * 4294967296.0); }

}  // namespace rnnfused
