// What the resident kernels have in common: operands of matrix instructions, which rows and units a lane
// works on, and where a sequence's rows are.
#pragma once

#include "cuda/approx.cuh"
#include "cuda/resident.h"

namespace rnnfused::cuda {

__device__ inline float from_tf32(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// What matrix instructions make of T: 16-bit types as they are, float as TF32. `words`: of a lane to a first
// operand. Sums of a tile over its depth come in several chains, since an instruction waits for the one
// before it in its chain.
template <class T, Products P>
struct Operand {
  static constexpr int depth = 16;  // of one instruction
  static constexpr int words = 4;
  using Number = Approx;  // of the cell's maths
  using Second = const uint32_t (&)[2];
  static __device__ T round(float x) { return from_float<T>(x); }
  template <class Weights>
  static __device__ void set(Weights& w, int i, int part, const T (&pair)[2]) {
    w.set(i, part, pack(pair[0], pair[1]));
  }
  static __device__ Second second(const uint32_t (&b)[2]) { return b; }
  template <int Chains>
  static __device__ void multiply(float (&sums)[Chains][4], int tile, const uint32_t (&a)[words], Second b) {
    mma_sync<T>(sums[tile % Chains], a, b);
  }
};
template <>
struct Operand<float, Products::rounded> {
  static constexpr int depth = 8;
  static constexpr int words = 4;
  using Number = Approx;
  using Second = const uint32_t (&)[2];
  static __device__ float round(float x) { return from_tf32(to_tf32(x)); }
  template <class Weights>
  static __device__ void set(Weights& w, int i, int part, const float (&one)[1]) {
    w.set(i, part, to_tf32(one[0]));
  }
  static __device__ Second second(const uint32_t (&b)[2]) { return b; }
  template <int Chains>
  static __device__ void multiply(float (&sums)[Chains][4], int tile, const uint32_t (&a)[words], Second b) {
    mma_sync_tf32(sums[tile % Chains], a, b);
  }
};
// A float is a TF32 number and what that leaves, which is one, too, to 22 bits together; of the four products
// of two floats the one of both rests is lost among the roundings of the others. Small products have chains
// of their own.
template <>
struct Operand<float, Products::split> {
  static constexpr int depth = 8;
  static constexpr int words = 8;
  using Number = float;
  struct Second {
    uint32_t large[2], rest[2];
  };
  static __device__ float round(float x) { return x; }
  template <class Weights>
  static __device__ void set(Weights& w, int i, int part, const float (&one)[1]) {
    const uint32_t large = to_tf32(one[0]);
    w.set(i, part, large);
    w.set(i, 4 + part, to_tf32(one[0] - from_tf32(large)));
  }
  static __device__ Second second(const uint32_t (&b)[2]) {
    Second parts;
    RNNFUSED_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float whole = from_tf32(b[i]);
      parts.large[i] = to_tf32(whole);
      parts.rest[i] = to_tf32(whole - from_tf32(parts.large[i]));
    }
    return parts;
  }
  template <int Chains>
  static __device__ void multiply(float (&sums)[Chains][4], int tile, const uint32_t (&a)[words],
                                  const Second& b) {
    static_assert(Chains % 2 == 0, "chains for both kinds of products");
    constexpr int kHalf = Chains / 2;
    const uint32_t large[4] = {a[0], a[1], a[2], a[3]}, rest[4] = {a[4], a[5], a[6], a[7]};
    mma_sync_tf32(sums[tile % kHalf], large, b.large);
    mma_sync_tf32(sums[kHalf + tile % kHalf], large, b.rest);
    mma_sync_tf32(sums[kHalf + tile % kHalf], rest, b.large);
  }
};
// Neighbours in k that a register holds, and at which k of an instruction's operand that of this lane begin:
// its `part`, of two.
template <class T>
constexpr int kPair = 4 / int(sizeof(T));
template <class T>
__device__ int k_of(int lane, int part) {
  return kPair<T> * (part * 4 + lane % 4);
}

// h in shared memory: groups of four units, of each all columns of the batch, four units to a column. What a
// warp makes of a step is one piece of it, which it sends as it is: stores into another block's memory take
// as long as there are 32 bytes that they touch. Columns are turned, so that the lanes that load at once meet
// in no bank.
template <class T, int Columns>
struct StateLayout {
  static constexpr int group = 4;
  static constexpr int line = 128 / (group * int(sizeof(T)));  // columns to all banks
  static constexpr int groups_of_line = line > Columns ? line / Columns : 1;

  static __device__ int at(int column, int unit) {
    const int of = unit / group, turned = column ^ of / groups_of_line % (4 / groups_of_line) * (line / 4);
    return (of * Columns + turned) * group + unit % group;
  }
};
// Which hidden unit a lane's `part` of an instruction's operand has first, so that a lane takes four units in
// a row.
template <class T>
__device__ int unit_of(int tile, int lane, int part) {
  constexpr int kTiles = 2 / kPair<T>;  // of 16 units
  return tile / kTiles * 16 + lane % 4 * 4 + (tile % kTiles * 2 + part) * kPair<T>;
}
// Second operands of two instructions, whose 16 or 32 units begin with this lane's four.
template <class T>
__device__ void load_operands(uint32_t (&low)[2], uint32_t (&high)[2], Shared<T> from, int second) {
  if constexpr (sizeof(T) == 2) {
    const uint2 a = shared_cast<uint2>(from)[0], b = shared_cast<uint2>(from + second)[0];
    low[0] = a.x, low[1] = a.y, high[0] = b.x, high[1] = b.y;
  } else {
    const uint4 a = shared_cast<uint4>(from)[0];
    low[0] = a.x, low[1] = a.y, high[0] = a.z, high[1] = a.w;
  }
}
// Of sm_90; smaller devices are asked what they have.
constexpr size_t kMostSharedBytes = size_t(227) << 10;

// Elements of 16 bytes: what a row of shared memory is longer than its numbers, so that eight rows, one below
// the other, lie in different banks.
template <class T>
constexpr int kChunk = 16 / int(sizeof(T));

// How a tile of 16 rows of W_hh by 8 of the batch is shared out. With four rows to a unit an exchange between
// lanes gives each of them all rows of one (unit, column) pair; with one row, a lane has four pairs as they
// come.
template <class Cell>
struct TileMap {
  static constexpr int rows = kUnitRows<Cell>;
  static constexpr int units = kTileRows / rows, cells = units / 4;
  static constexpr int columns = rows == 4 ? 1 : 2;  // different ones among a lane's cells
  static_assert(rows == 1 || rows == 4, "a tile has 1 or 4 rows of a unit");
  static_assert(Cell::gates <= rows, "rows beyond the gates are zero");

  static __device__ int unit_of_row(int row) { return row % units; }
  static __device__ int gate_of_row(int row) { return row / units; }
  // Of this lane's cell i.
  static __device__ int unit(int lane, int i) { return rows == 4 ? lane / 4 % 4 : lane / 4 + i / 2 * 8; }
  static __device__ int column(int lane, int i) {
    return rows == 4 ? lane % 4 * 2 + lane / 16 : lane % 4 * 2 + i % 2;
  }

  // From the instruction's sums to those of each cell.
  static __device__ void gather(const float (&sums)[4], int lane, float (&out)[cells][rows]) {
    if constexpr (rows == 4) {
      const bool upper = lane >= 16;
      const float first = shuffle_xor(upper ? sums[0] : sums[1], 16);
      const float second = shuffle_xor(upper ? sums[2] : sums[3], 16);
      out[0][0] = upper ? first : sums[0];
      out[0][1] = upper ? sums[1] : first;
      out[0][2] = upper ? second : sums[2];
      out[0][3] = upper ? sums[3] : second;
    } else {
      RNNFUSED_UNROLL
      for (int i = 0; i < 4; ++i) out[i][0] = sums[i];
    }
  }
};

// Copies columns of some rows of W_hh, from `first` on, into shared memory [rows, pitch], zeros where there
// is none: row_of(i) says which row of the matrix is the i-th, negative for none. All threads call it; what
// they copied is there after cp_async_wait_all and a barrier.
template <int Threads, int Rows, int Columns, int Pitch, class T, class RowOf>
__device__ void stage_weights(const T* weights, int H, int first, Shared<T> to, RowOf row_of) {
  constexpr int kVector = kChunk<T>;
  static_assert(Rows * Columns % (kVector * Threads) == 0, "whole rounds of all threads");
  if (H % kVector == 0 && reinterpret_cast<size_t>(weights) % 16 == 0) {
    RNNFUSED_UNROLL
    for (int i = 0; i < Rows * Columns / kVector / Threads; ++i) {
      const int at = (i * Threads + int(threadIdx.x)) * kVector, row = at / Columns, column = at % Columns;
      const int from = row_of(row);
      const bool there = from >= 0 && first + column < H;
      cp_async_zfill<16>(to + (row * Pitch + column),
                         weights + (there ? Index(from) * H + first + column : 0), there ? 16 : 0);
    }
    return;
  }
  for (int at = int(threadIdx.x); at < Rows * Columns; at += Threads) {
    const int row = at / Columns, column = at % Columns, from = row_of(row);
    to[row * Pitch + column] =
        from >= 0 && first + column < H ? weights[Index(from) * H + first + column] : T{};
  }
}

// First operands of matrix instructions, `All` of a warp: the first `Held` in registers, the others in shared
// memory, where every lane keeps its own words.
template <int All, int Held, int Words>
class Operands {
 public:
  static constexpr int kept = All > Held ? All - Held : 0, vectors = Words / 4;
  static constexpr size_t bytes(int warps) { return size_t(warps) * kept * vectors * 32 * sizeof(uint4); }

  // Of all warps, one after the other.
  __device__ explicit Operands(Shared<uint4> memory)
      : own_(memory + (int(threadIdx.x) / 32 * kept * vectors * 32 + int(threadIdx.x) % 32)) {}

  // i and word are known when the loops around are unrolled.
  __device__ void set(int i, int word, uint32_t value) {
    if (i < Held) {
      held_[i < Held ? i : 0][word] = value;
    } else {
      shared_cast<uint32_t>(own_)[((i - Held) * vectors + word / 4) * 32 * 4 + word % 4] = value;
    }
  }
  template <class Body>
  __device__ void use(int i, Body body) const {
    if (i < Held) {
      body(held_[i < Held ? i : 0]);
    } else {
      uint32_t words[Words];
      RNNFUSED_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const uint4 own = own_[((i - Held) * vectors + v) * 32];
        words[4 * v] = own.x, words[4 * v + 1] = own.y, words[4 * v + 2] = own.z, words[4 * v + 3] = own.w;
      }
      body(words);
    }
  }

 private:
  Shared<uint4> own_;
  uint32_t held_[Held < All ? Held : All][Words];
};

// A direction's sequences. 32 bits count rows, steps and the batch; the driver sees to it that they suffice.
struct Directed {
  const Walk& walk;
  bool reverse;

  __device__ int step(int position) const { return reverse ? int(walk.steps) - 1 - position : position; }
  __device__ int row(int step) const { return walk.offsets ? walk.offsets[step] : step * int(walk.batch); }
  // How many steps the sequence b has; none where there is no such sequence.
  __device__ int length(int b) const {
    const int steps = int(walk.steps);
    if (b >= int(walk.batch)) return 0;
    if (walk.lengths) return walk.lengths[b] < steps ? int(walk.lengths[b]) : steps;
    return walk.offsets ? walk.offsets[steps + 1 + b] : steps;
  }
  // The positions at which one of these sequences may be there.
  __device__ void clip(int first_sequence, int count, int& begin, int& end) const {
    int longest = length(first_sequence);  // packed sequences come longest first
    for (int b = first_sequence; walk.lengths && b < first_sequence + count; ++b) {
      const int steps = length(b);
      longest = steps > longest ? steps : longest;
    }
    const int first = reverse ? int(walk.steps) - longest : 0, last = first + longest;
    begin = int(walk.begin) > first ? int(walk.begin) : first;
    end = int(walk.end) < last ? int(walk.end) : last;
    if (end < begin) end = begin;
  }
  // Whether the state that a sequence of that length has after the step is zeroed.
  __device__ bool is_cut_after(int step, int b, int length) const {
    if (!walk.resets || step >= length) return false;
    const int cut = reverse ? step : step + 1;
    return cut < length && walk.resets[Index(cut) * walk.batch + b];
  }
  // And the one that it has before the step. With one function behind both, the loops of some kernels become
  // longer (tools/sass.json).
  __device__ bool is_cut_before(int step, int b, int length) const {
    if (!walk.resets || step >= length) return false;
    const int cut = reverse ? step + 1 : step;
    return cut < length && walk.resets[Index(cut) * walk.batch + b];
  }
};

// Clusters exist from sm_90 on; below, kernels that use them are empty.
template <Exchange X>
constexpr bool kCompiles = X == Exchange::block || RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900;

template <Exchange X>
__device__ void sync_all() {
  if constexpr (X == Exchange::cluster) {
    cluster_sync();
  } else {
    block_sync();
  }
}

}  // namespace rnnfused::cuda
