#include <doctest/doctest.h>

#include "core/philox.h"

namespace rnnfused::RNNFUSED_ISA {
namespace {

// The published answers of Random123, the authors' own program.
TEST_CASE("Philox4x32-10 gives what its authors say") {
  struct Answer {
    uint32_t counter[4], key[2], words[4];
  };
  constexpr uint32_t kOnes = 0xffffffff;
  const Answer answers[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const Answer& a : answers) {
    const uint64_t seed = uint64_t(a.key[1]) << 32 | a.key[0],
                   row = uint64_t(a.counter[3]) << 32 | a.counter[2];
    uint32_t words[kPhiloxGroup];
    philox_group(seed, Draw(a.counter[1] % 4), int(a.counter[1] / 4), row, a.counter[0] / kPhiloxCounters,
                 words);
    for (int i = 0; i < 4; ++i)
      CHECK(words[i * kPhiloxCounters + int(a.counter[0] % kPhiloxCounters)] == a.words[i]);
  }
}

TEST_CASE("a unit's word is the one that it has in its group") {
  for (uint32_t group : {0, 1, 77}) {
    uint32_t words[kPhiloxGroup];
    philox_group(12345678901234567, Draw::zoneout_c, 1, 98765432101, group, words);
    for (uint32_t i = 0; i < kPhiloxGroup; ++i) {
      CHECK(philox_word(12345678901234567, Draw::zoneout_c, 1, 98765432101, group * kPhiloxGroup + i) ==
            words[i]);
    }
  }
}

}  // namespace
}  // namespace rnnfused::RNNFUSED_ISA
