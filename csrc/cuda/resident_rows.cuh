// Rows of a layer's arrays on their way between memory and the resident kernels' lanes, through shared
// memory. A lane has cells of four units and eight sequences: taken from memory as they are, a warp's every
// access would touch eight lines of the cache for 8 bytes of each, and it is lines that the cache takes its
// time for. So threads side by side move 16 bytes each of what a block has of a row.
#pragma once

#include "cuda/resident.h"
#include "cuda/vector.cuh"

namespace rnnfused::cuda {

// What a step has of an array, in shared memory: `Units` side by side of each of so many columns, and of that
// as many kinds as there are.
template <class E, int Columns, int Units>
struct RowTile {
  static constexpr int vector = 16 / int(sizeof(E)), vectors = Units / vector;
  static constexpr int pitch = Units + vector;  // so that columns lie in different banks
  static_assert(Units % vector == 0, "whole vectors");

  RNNFUSED_HD static constexpr int elements(int kinds) { return kinds * Columns * pitch; }
  RNNFUSED_HD static constexpr size_t bytes(int kinds) { return size_t(elements(kinds)) * sizeof(E); }
  RNNFUSED_HD static constexpr int pieces(int kinds) { return kinds * Columns * vectors; }
  static __device__ int at(int kind, int column, int unit) {
    return (kind * Columns + column) * pitch + unit;
  }
};

// What a thread moves of every step: 16 bytes of a row, or what there is of them.
struct RowPiece {
  using Grain = uint16_t;  // in which it counts

  Grain* memory = nullptr;  // of row 0
  int row_step = 0;
  int shared = 0;  // where it is in the step's tile
  int count = 0;
  int length = 0;  // steps

  // The i-th of Tile, whose first column's row 0 begins at `to` and is there for `units` (nowhere if that is
  // null); rows are so many elements apart and so are columns, kinds `kind_step`; the tile begins so many
  // bytes into the step's.
  template <class Tile, int Columns, class E>
  __device__ void take(int i, E* to, int units, int elements_of_row, int kind_step, size_t begin,
                       Shared<int> lengths) {
    constexpr int kGrains = int(sizeof(E) / sizeof(Grain));
    const int of = i / Tile::vectors, kind = of / Columns, column = of % Columns;
    const int unit = i % Tile::vectors * Tile::vector;
    if (to == nullptr || unit >= units) return;
    memory = reinterpret_cast<Grain*>(to + (kind * kind_step + column * elements_of_row + unit));
    row_step = elements_of_row * kGrains;
    shared = int(begin / sizeof(Grain)) + Tile::at(kind, column, unit) * kGrains;
    count = (units - unit < Tile::vector ? units - unit : Tile::vector) * kGrains;
    length = lengths[column];
  }

  // `whole`: every piece of the launch is of 16 bytes, and in memory a multiple of them.
  __device__ void fetch(bool whole, int step, int row, Shared<Grain> tile) const {
    if (step >= length) return;
    const Grain* const from = memory + Index(row) * row_step;
    if (whole) {
      cp_async<16>(tile + shared, from);
    } else {
      RNNFUSED_NO_UNROLL
      for (int i = 0; i < count; ++i) {
        Grain one;
        memcpy(&one, from + i, sizeof one);
        tile[shared + i] = one;
      }
    }
  }
  __device__ void flush(bool whole, int step, int row, Shared<Grain> tile) const {
    if (step >= length) return;
    Grain* const to = memory + Index(row) * row_step;
    if (whole) {
      const uint4 all = shared_cast<uint4>(tile + shared)[0];
      memcpy(aligned<16>(to), &all, sizeof all);
    } else {
      RNNFUSED_NO_UNROLL
      for (int i = 0; i < count; ++i) {
        const Grain one = tile[shared + i];
        memcpy(to + i, &one, sizeof one);
      }
    }
  }
};

template <class E>
__device__ bool is_whole(const E* pointer) {
  return reinterpret_cast<size_t>(pointer) % 16 == 0;
}

}  // namespace rnnfused::cuda
