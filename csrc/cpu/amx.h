// Tile registers (AMX): eight of 16 rows of 64 bytes, and one instruction that multiplies two of them.
// Compiled for an ISA that has them; with RNNFUSED_AMX_EMULATED by plain code, which tests run on any
// machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/int8.h"

#if defined(__AMX_TILE__) || defined(RNNFUSED_AMX_EMULATED)
#define RNNFUSED_AMX 1

namespace rnnfused::RNNFUSED_ISA::amx {

constexpr int kRows = 16, kRowBytes = 64;

// The shapes of all tiles, as the processor reads them.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int count) { row_bytes[tile] = kRowBytes, rows[tile] = uint8_t(count); }
};
static_assert(sizeof(Shapes) == 64);

#if defined(RNNFUSED_AMX_EMULATED)

struct Registers {
  Shapes shapes;
  alignas(64) uint8_t tile[8][kRows][kRowBytes];
};
inline Registers& registers() {
  thread_local Registers all;
  return all;
}

inline void configure(const Shapes& shapes) {
  registers().shapes = shapes;
  memset(registers().tile, 0, sizeof registers().tile);
}
inline void release() { configure(Shapes{}); }

template <int tile>
inline void load(const void* from, int64_t stride) {
  memset(registers().tile[tile], 0, sizeof registers().tile[tile]);
  for (int row = 0; row < registers().shapes.rows[tile]; ++row)
    memcpy(registers().tile[tile][row], static_cast<const char*>(from) + row * stride, kRowBytes);
}
template <int tile>
inline void store(void* to, int64_t stride) {
  for (int row = 0; row < registers().shapes.rows[tile]; ++row)
    memcpy(static_cast<char*>(to) + row * stride, registers().tile[tile][row], kRowBytes);
}

inline float widen(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, sizeof bits);
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &wide, sizeof x);
  return x;
}

// c[m][n] += the products of row m of a with column n of b, whose rows hold the terms in groups of four
// bytes.
template <class S, int c, int a, int b>
inline void multiply() {
  Registers& r = registers();
  for (int m = 0; m < r.shapes.rows[c]; ++m) {
    for (int n = 0; n < kRowBytes / 4; ++n) {
      Sum<S> sum, even = 0, odd = 0;
      memcpy(&sum, r.tile[c][m] + 4 * n, sizeof sum);
      for (int k = 0; k < r.shapes.rows[b]; ++k) {
        const uint8_t *left = r.tile[a][m] + 4 * k, *right = r.tile[b][k] + 4 * n;
        if constexpr (kQuantized<S>) {
          for (int i = 0; i < 4; ++i) even += int32_t(left[i]) * int32_t(int8_t(right[i]));
        } else {
          even += widen(left) * widen(right), odd += widen(left + 2) * widen(right + 2);
        }
      }
      sum += even + odd;
      memcpy(r.tile[c][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

#else

RNNFUSED_HD void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
RNNFUSED_HD void release() { asm volatile("tilerelease" ::); }

template <int tile>
RNNFUSED_HD void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
RNNFUSED_HD void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}

template <class S, int c, int a, int b>
RNNFUSED_HD void multiply() {
  if constexpr (kQuantized<S>) {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  } else {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
}

#endif

}  // namespace rnnfused::RNNFUSED_ISA::amx

#endif
