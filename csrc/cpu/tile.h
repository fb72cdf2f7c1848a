// The register tile: Rows x Width vectors of sums, held in registers over a chain of terms. Every
// product in the library (input projection, recurrence, backward, dX) is this one loop; only what surrounds
// it differs.
#pragma once

#include "core/sequence.h"
#include "core/simd.h"
#include "cpu/pack.h"

namespace rnnfused::RNNFUSED_ISA {

// Accumulator vectors that fit in the register file beside the operands.
#if RNNFUSED_VECTOR_BYTES == 64 || RNNFUSED_VECTOR_BYTES == 16
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif
constexpr int kMaxWidth = 8;
constexpr int kMaxRows = 8;

constexpr int max_rows(int width) {
  return kAccumulators / width < kMaxRows ? kAccumulators / width : kMaxRows;
}

// The k range of a product: `runs` runs of `length` contiguous scalars of a row, `stride` apart. The second
// operand is packed without gaps. A GRU's recurrent gradient is such a row: three accumulators of every four.
struct Runs {
  Index runs, length, stride;
  Index size() const { return runs * length; }
};

// Terms summed in registers before they are added to the accumulators in memory: one chain over a long k
// range would round too often, and the second level costs next to nothing.
constexpr Index kChain = 128;

// Runs that make up a chain.
RNNFUSED_HD Index chain_runs(const Runs& k) {
  return k.length >= kChain ? 1 : (kChain + k.length - 1) / (k.length + !k.length);
}

// acc[r][j] += sum_k a[r][k] b[k][j], j of W vectors, in chains of ascending k, one rounding per term (where
// the ISA has fma): the same bits whatever Rows is, and however the k range is cut between chains.
template <class T, int R, int W>
void tile(const T* const* a, Runs k, const T* b, T* const* acc) {
  using V = Native<T>;
  constexpr int L = kLanes<T>;
  // A single run is cut into chains, several short ones are joined.
  const Index per_chain = k.runs == 1 ? 1 : chain_runs(k);
  const Index chains = k.runs == 1 ? (k.length + kChain - 1) / kChain : (k.runs + per_chain - 1) / per_chain;
  for (Index chain = 0; chain < chains; ++chain) {
    V sum[R][W] = {};
    const Index first = chain * per_chain;
    const Index runs = k.runs == 1 ? 1 : k.runs - first < per_chain ? k.runs - first : per_chain;
    const Index from = k.runs == 1 ? chain * kChain : 0;
    const Index terms = k.runs > 1 ? k.length : k.length - from < kChain ? k.length - from : kChain;
    for (Index run = 0; run < runs; ++run) {
      const T* row[R];
      for (int r = 0; r < R; ++r) row[r] = a[r] + (k.runs == 1 ? from : (first + run) * k.stride);
      for (Index i = 0; i < terms; ++i, b += W * L) {
        V right[W];
        for (int j = 0; j < W; ++j) right[j] = load<V>(b + j * L);
        for (int r = 0; r < R; ++r) {
          const V left = broadcast<V>(row[r][i]);
          for (int j = 0; j < W; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < W; ++j) {
        T* at = acc[r] + j * L;
        store(at, load<V>(at) + sum[r][j]);
      }
    }
  }
}

template <class T>
using TileFn = void (*)(const T* const* a, Runs k, const T* b, T* const* acc);

template <class T>
struct TileTable {
  TileFn<T> fn[kMaxWidth][kMaxRows];
};

template <class T, int R, int W>
constexpr TileFn<T> tile_or_null() {
  if constexpr (R <= max_rows(W)) {
    return &tile<T, R, W>;
  } else {
    return nullptr;
  }
}

template <class T, int W>
constexpr void fill_width(TileTable<T>& table) {
  static_assert(kMaxRows == 8);
  auto& fn = table.fn[W - 1];
  fn[0] = tile_or_null<T, 1, W>(), fn[1] = tile_or_null<T, 2, W>(), fn[2] = tile_or_null<T, 3, W>();
  fn[3] = tile_or_null<T, 4, W>(), fn[4] = tile_or_null<T, 5, W>(), fn[5] = tile_or_null<T, 6, W>();
  fn[6] = tile_or_null<T, 7, W>(), fn[7] = tile_or_null<T, 8, W>();
}

template <class T>
constexpr TileTable<T> make_tile_table() {
  static_assert(kMaxWidth == 8);
  TileTable<T> table{};
  fill_width<T, 1>(table), fill_width<T, 2>(table), fill_width<T, 3>(table), fill_width<T, 4>(table);
  fill_width<T, 5>(table), fill_width<T, 6>(table), fill_width<T, 7>(table), fill_width<T, 8>(table);
  return table;
}

template <class T>
constexpr TileTable<T> kTiles = make_tile_table<T>();

// Scratch of one product: the tile itself and the partial sums of rows whose k range is cut.
template <class T>
constexpr Index tile_scalars() {
  return Index(kAccumulators < kMaxWidth ? kMaxWidth : kAccumulators) * kLanes<T>;
}

// Bytes of a packed panel that stay in the second-level cache while every row of the operand passes over
// them.
constexpr Index kPanelBytes = 256 * 1024;

// Runs (or terms of a single run) of a k range whose packed rows are multiplied at once: whole chains, so
// that the cut does not show in the bits.
template <class T>
RNNFUSED_HD Index piece_of(const Runs& k, int width) {
  const Index cut = kPanelBytes / Index(width * kLanes<T> * sizeof(T));
  // Runs are cut between each other, a single run anywhere.
  const Index unit = k.runs == 1 ? 1 : k.length;
  const Index chain = k.runs == 1 ? kChain : chain_runs(k);
  return (cut / unit / chain > 0 ? cut / unit / chain : 1) * chain;
}

// What `product` needs for the partial sums of n rows: nothing where the k range is one piece.
template <class T>
RNNFUSED_HD Index partial_scalars(Index n, const Runs& k, int width) {
  return piece_of<T>(k, width) >= (k.runs == 1 ? k.length : k.runs) ? 0 : n * width * kLanes<T>;
}

// For every row in [0, n): add the product of the row's k range with the panel to accumulators that lie
// somewhere, and hand them to sink(row, acc). `a(row)` is where the row's k range starts. place(row, r,
// first, last) says where the accumulators lie for a piece of the k range; r counts the rows of a tile, and
// before the first piece the accumulators must hold what the sums start from.
template <class T, class RowOf, class Place, class Sink>
RNNFUSED_HD void product_at(Index n, Runs k, int width, const T* panel, RowOf a, Place place, Sink sink) {
  const Index row_scalars = width * kLanes<T>;
  const Index most = max_rows(width);
  const Index tiles = (n + most - 1) / most;
  const Index unit = k.runs == 1 ? 1 : k.length;
  const Index total = k.runs == 1 ? k.length : k.runs;
  const Index piece = piece_of<T>(k, width);

  for (Index from = 0; from == 0 || from < total; from += piece) {
    const bool first = from == 0, last = from + piece >= total;
    const Index count = last ? total - from : piece;
    const Runs part = k.runs == 1 ? Runs{1, count, 0} : Runs{count, k.length, k.stride};
    const Index skip = k.runs == 1 ? from : from * k.stride;
    for (Index t = 0; t < tiles; ++t) {
      // An even split: a full tile and a small remainder would waste the remainder's bandwidth.
      const Index begin = n * t / tiles, rows = n * (t + 1) / tiles - begin;
      const T* left[kMaxRows];
      T* acc[kMaxRows];
      for (Index r = 0; r < rows; ++r) {
        left[r] = a(begin + r) + skip;
        acc[r] = place(begin + r, r, first, last);
      }
      kTiles<T>.fn[width - 1][rows - 1](left, part, panel + from * unit * row_scalars, acc);
      if (!last) continue;
      for (Index r = 0; r < rows; ++r) sink(begin + r, acc[r]);
    }
  }
}

// The same with accumulators that nobody keeps: init(row, acc) starts them, and they are gone after sink.
// `partial` holds partial_scalars.
template <class T, class RowOf, class Init, class Sink>
RNNFUSED_HD void product(Index n, Runs k, int width, const T* panel, T* partial, RowOf a, Init init,
                         Sink sink) {
  const Index row_scalars = width * kLanes<T>;
  alignas(64) T stack[tile_scalars<T>()];
  product_at(
      n, k, width, panel, a,
      [&](Index row, Index r, bool first, bool last) {
        T* acc = first && last ? stack + r * row_scalars : partial + row * row_scalars;
        if (first) init(row, acc);
        return acc;
      },
      sink);
}

// The products of R rows with a, lanes not yet summed.
template <class T, int R>
RNNFUSED_HD void dot_rows(const T* rows, Index size, const T* a, Native<T>* out) {
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  V sum[R] = {};
  Index k = 0;
  for (; k + L <= size; k += L) {
    const V right = load<V>(a + k);
    for (Index r = 0; r < R; ++r) sum[r] = fma(load<V>(rows + r * size + k), right, sum[r]);
  }
  if (k < size) {
    const V right = load<V>(a + k, size - k);
    for (Index r = 0; r < R; ++r) sum[r] = fma(load<V>(rows + r * size + k, size - k), right, sum[r]);
  }
  for (Index r = 0; r < R; ++r) out[r] = sum[r];
}

// acc[lane] += sum_k rows[lane][k] a[k] for `lanes` rows of a matrix as it lies: what a sequence of a few
// rows takes instead of a tile, since packing the weights would cost more than all that is done with them.
template <class T>
void dots(const T* rows, Index lanes, Index size, const T* a, T* acc) {
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  constexpr int R = L < 4 ? L : 4;  // the prefetcher follows a few rows at once, not sixteen
  V sum[L] = {};
  for (Index lane = 0; lane < L; lane += R) {
    if (lane + R <= lanes) {
      dot_rows<T, R>(rows + lane * size, size, a, sum + lane);
      continue;
    }
    for (Index i = lane; i < lane + R; ++i) {
      if (i < lanes) dot_rows<T, 1>(rows + i * size, size, a, sum + i);
    }
  }
  store(acc, load<V>(acc) + lane_sums<T>(sum));
}

}  // namespace rnnfused::RNNFUSED_ISA
