// The register tile: Rows x Width vectors of sums, held in registers over a chain of terms. Every
// product in the library (input projection, recurrence, backward, dX) is this one loop; only what surrounds
// it differs.
#pragma once

#include "core/sequence.h"
#include "core/simd.h"
#include "core/stream.h"
#include "cpu/amx.h"
#include "cpu/pack.h"
#include "cpu/plan.h"

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
// range would round too often, and the second level costs next to nothing. Integers are not rounded.
template <class S>
constexpr Index kChain = kQuantized<S> ? 4096 : 128;

// Runs that make up a chain.
template <class S>
RNNFUSED_HD Index chain_runs(const Runs& k) {
  return k.length >= kChain<S> ? 1 : (kChain<S> + k.length - 1) / (k.length + !k.length);
}

// acc[r][j] += sum_k a[r][k] b[k][j], j of W vectors, in chains of ascending k, one rounding per term (where
// the ISA has fma) or pair of terms: the same bits whatever Rows is, and however the k range is cut between
// chains. No run is longer than a chain where there are several.
template <class S, int R, int W, class Panel>
RNNFUSED_HD void tile_in_vectors(const Left<S>* const* a, Runs k, const Panel* b, Sum<S>* const* acc) {
  using T = Sum<S>;
  using V = Native<T>;
  constexpr Index L = kLanes<T>, P = kTerms<S>;
  // A single run is cut into chains, several short ones are joined.
  const Index per_chain = k.runs == 1 ? 1 : chain_runs<S>(k);
  const Index chains =
      k.runs == 1 ? (k.length + kChain<S> - 1) / kChain<S> : (k.runs + per_chain - 1) / per_chain;
  for (Index chain = 0; chain < chains; ++chain) {
    V sum[R][W] = {};
    const Index first = chain * per_chain;
    const Index runs = k.runs == 1 ? 1 : k.runs - first < per_chain ? k.runs - first : per_chain;
    const Index from = k.runs == 1 ? chain * kChain<S> : 0;
    const Index terms = k.runs > 1 ? k.length : k.length - from < kChain<S> ? k.length - from : kChain<S>;
    for (Index run = 0; run < runs; ++run) {
      const Left<S>* row[R];
      for (int r = 0; r < R; ++r) row[r] = a[r] + (k.runs == 1 ? from : (first + run) * k.stride);
      const auto add = [&](const auto& left_of) {
        if constexpr ((kQuantized<S> && R == 1) || !std::is_same_v<Panel, Operand<S>>) {
          // What is widened on the way needs a register, and there may be none left for a whole tile's.
          Terms<S> left[R];
          for (int r = 0; r < R; ++r) left[r] = left_of(row[r]);
          for (int j = 0; j < W; ++j) {
            const Terms<S> right = load_terms<S>(b + j * L * P);
            for (int r = 0; r < R; ++r) sum[r][j] = add_product<S>(left[r], right, sum[r][j]);
          }
        } else {
          Terms<S> right[W];
          for (int j = 0; j < W; ++j) right[j] = load_terms<S>(b + j * L * P);
          for (int r = 0; r < R; ++r) {
            const Terms<S> left = left_of(row[r]);
            for (int j = 0; j < W; ++j) sum[r][j] = add_product<S>(left, right[j], sum[r][j]);
          }
        }
        b += W * L * P;
      };
      Index i = 0;
      for (; i + P <= terms; i += P) add([&](const Left<S>* p) { return broadcast_terms<S>(p + i); });
      if constexpr (kDots<S>) {
        if (i < terms) add([&](const Left<S>* p) { return broadcast_last<S>(p + i); });
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

#if defined(RNNFUSED_AMX)

// Types that tile registers multiply.
template <class S>
constexpr bool kInTiles = kDots<S> || kQuantized<S>;

// Terms of a row that a tile register holds, and those that are added up before the sums leave the registers.
template <class S>
constexpr Index kTileTerms = amx::kRowBytes / Index(sizeof(Left<S>));
constexpr Index kTileChain = 1024;

// Adds the products of R rows, `stride` terms apart, with N <= 4 of a panel's vectors to acc[r] + at. Whole
// registers of terms; `panel_bytes` from a pair or four of the panel's terms to the next.
template <class S, int R, int N>
void sum_in_tiles(const Left<S>* rows, Index stride, Index terms, const Operand<S>* b, Index panel_bytes,
                  Sum<S>* const* acc, Index at) {
  using V = Native<Sum<S>>;
  constexpr Index L = kLanes<Sum<S>>, P = kTerms<S>;
  amx::Shapes shapes;
  for (int j = 0; j < N; ++j) shapes.set(j, R);
  shapes.set(6, R), shapes.set(7, amx::kRows);
  amx::configure(shapes);  // with zeros in all of them
  const char* panel = reinterpret_cast<const char*>(b);
  for (Index t = 0; t < terms; t += kTileTerms<S>, panel += amx::kRows * panel_bytes) {
    amx::load<6>(rows + t, stride * Index(sizeof(Left<S>)));
    const auto add = [&](auto j) {
      if constexpr (j < N) {
        amx::load<7>(panel + j * L * P * Index(sizeof(Operand<S>)), panel_bytes);
        amx::multiply<S, j, 6, 7>();
      }
    };
    add(std::integral_constant<int, 0>{}), add(std::integral_constant<int, 1>{});
    add(std::integral_constant<int, 2>{}), add(std::integral_constant<int, 3>{});
  }
  alignas(64) Sum<S> sums[4][R][L];
  const auto store_sums = [&](auto j) {
    if constexpr (j < N) amx::store<j>(sums[j], amx::kRowBytes);
  };
  store_sums(std::integral_constant<int, 0>{}), store_sums(std::integral_constant<int, 1>{});
  store_sums(std::integral_constant<int, 2>{}), store_sums(std::integral_constant<int, 3>{});
  amx::release();
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < N; ++j) {
      Sum<S>* const to = acc[r] + at + j * L;
      store(to, load<V>(to) + load<V>(sums[j][r]));
    }
  }
}

// The terms [from, from + count) of the rows' runs, one after another.
template <class S>
void join_runs(const Left<S>* row, Runs k, Index from, Index count, Left<S>* out) {
  while (count > 0) {
    const Index run = from / k.length, skipped = from % k.length;
    const Index n = k.length - skipped < count ? k.length - skipped : count;
    memcpy(out, row + run * k.stride + skipped, size_t(n) * sizeof *out);
    from += n, count -= n, out += n;
  }
}

// As tile_in_vectors, in chains of another length: the bits are those of this ISA, whatever R is. What does
// not fill a register is left to vectors.
template <class S, int R, int W>
void tile_in_tiles(const Left<S>* const* a, Runs k, const Operand<S>* b, Sum<S>* const* acc) {
  constexpr Index L = kLanes<Sum<S>>, P = kTerms<S>;
  alignas(64) Left<S> joined[R][kTileChain];
  bool even = k.runs == 1;
  for (int r = 1; r < R; ++r) even = even && a[r] - a[r - 1] == a[1] - a[0];
  const Index total = k.runs * k.length;
  for (Index from = 0; from < total; from += kTileChain) {
    const Index count = total - from < kTileChain ? total - from : kTileChain;
    const Index whole = count / kTileTerms<S> * kTileTerms<S>;
    const Left<S>* row[R];
    for (int r = 0; r < R; ++r) {
      if (!even) join_runs<S>(a[r], k, from, count, joined[r]);
      row[r] = even ? a[r] + from : joined[r];
    }
    const Index stride = R > 1 ? row[R > 1 ? 1 : 0] - row[0] : 0;
    const Operand<S>* const panel = b + from * W * L;
    const Index panel_bytes = W * L * P * Index(sizeof(Operand<S>));
    if (whole > 0) {
      constexpr int first = W < 4 ? W : 4, second = W - first;
      sum_in_tiles<S, R, first>(row[0], stride, whole, panel, panel_bytes, acc, 0);
      if constexpr (second > 0)
        sum_in_tiles<S, R, second>(row[0], stride, whole, panel + first * L * P, panel_bytes, acc, first * L);
    }
    if (whole == count) continue;
    const Left<S>* rest[R];
    for (int r = 0; r < R; ++r) rest[r] = row[r] + whole;
    tile_in_vectors<S, R, W>(rest, Runs{1, count - whole, 0}, panel + whole * W * L, acc);
  }
}

#endif

template <class S, int R, int W, class Panel>
void tile(const Left<S>* const* a, Runs k, const Panel* b, Sum<S>* const* acc) {
#if defined(RNNFUSED_AMX)
  if constexpr (kInTiles<S>) return tile_in_tiles<S, R, W>(a, k, b, acc);
#endif
  tile_in_vectors<S, R, W>(a, k, b, acc);
}

// Rows of a left operand as tiles multiply them: where they lie, or if they are not multiplied as they lie
// rounded, each with its scale, or widened.
template <class S>
struct LeftRows {
  static constexpr bool converts = kQuantized<S> || kWidens<S>;

  Left<S>* terms = nullptr;
  Compute<S>* scale = nullptr;

  void take(Arena& arena, Index rows, Index size) {
    if (converts) terms = arena.take<Left<S>>(rows * padded<Compute<S>>(size));
    if (kQuantized<S>) scale = arena.take<Compute<S>>(rows);
  }

  // Of some of the rows a(row), `size` numbers each.
  template <class RowOf>
  RNNFUSED_HD void convert([[maybe_unused]] Range rows, [[maybe_unused]] Index size,
                           [[maybe_unused]] RowOf a) const {
    if constexpr (converts) {
      constexpr Index L = kLanes<Compute<S>>;
      for (Index row = rows.first; row < rows.last; ++row) {
        Left<S>* const to = terms + row * padded<Compute<S>>(size);
        if constexpr (kQuantized<S>) {
          scale[row] = round_row(a(row), size, to);
        } else {
          for (Index k = 0; k < size; k += L) store(to + k, load<Native<Left<S>>>(a(row) + k, size - k));
        }
      }
    }
  }

  // Where a tile finds the rows a(row), once they are converted.
  template <class RowOf>
  RNNFUSED_HD auto of([[maybe_unused]] Index size, RowOf a) const {
    if constexpr (converts) {
      return [from = terms, size](Index row) { return from + row * padded<Compute<S>>(size); };
    } else {
      return a;
    }
  }
};

template <class S, class Panel>
using TileFn = void (*)(const Left<S>* const* a, Runs k, const Panel* b, Sum<S>* const* acc);

template <class S, class Panel>
struct TileTable {
  TileFn<S, Panel> fn[kMaxWidth][kMaxRows];
};

// A panel of numbers that every tile widens anew is for few rows.
template <class S, class Panel>
constexpr int kRowsOfPanel = std::is_same_v<Panel, Operand<S>> ? kMaxRows : kFewRows;

template <class S, class Panel, int R, int W>
constexpr TileFn<S, Panel> tile_or_null() {
  if constexpr (R <= max_rows(W) && R <= kRowsOfPanel<S, Panel>) {
    return &tile<S, R, W, Panel>;
  } else {
    return nullptr;
  }
}

template <class S, class Panel, int W>
constexpr void fill_width(TileTable<S, Panel>& table) {
  static_assert(kMaxRows == 8);
  auto& fn = table.fn[W - 1];
  fn[0] = tile_or_null<S, Panel, 1, W>(), fn[1] = tile_or_null<S, Panel, 2, W>();
  fn[2] = tile_or_null<S, Panel, 3, W>(), fn[3] = tile_or_null<S, Panel, 4, W>();
  fn[4] = tile_or_null<S, Panel, 5, W>(), fn[5] = tile_or_null<S, Panel, 6, W>();
  fn[6] = tile_or_null<S, Panel, 7, W>(), fn[7] = tile_or_null<S, Panel, 8, W>();
}

template <class S, class Panel>
constexpr TileTable<S, Panel> make_tile_table() {
  static_assert(kMaxWidth == 8);
  TileTable<S, Panel> table{};
  fill_width<S, Panel, 1>(table), fill_width<S, Panel, 2>(table), fill_width<S, Panel, 3>(table);
  fill_width<S, Panel, 4>(table), fill_width<S, Panel, 5>(table), fill_width<S, Panel, 6>(table);
  fill_width<S, Panel, 7>(table), fill_width<S, Panel, 8>(table);
  return table;
}

template <class S, class Panel>
constexpr TileTable<S, Panel> kTiles = make_tile_table<S, Panel>();

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
template <class S>
RNNFUSED_HD Index piece_of(const Runs& k, int width) {
  const Index cut = kPanelBytes / Index(width * kLanes<Compute<S>> * sizeof(Operand<S>));
  // Runs are cut between each other, a single run anywhere.
  const Index unit = k.runs == 1 ? 1 : k.length;
  const Index chain = k.runs == 1 ? kChain<S> : chain_runs<S>(k);
  return (cut / unit / chain > 0 ? cut / unit / chain : 1) * chain;
}

// What `product` needs for the partial sums of n rows: nothing where the k range is one piece.
template <class S>
RNNFUSED_HD Index partial_scalars(Index n, const Runs& k, int width) {
  return piece_of<S>(k, width) >= (k.runs == 1 ? k.length : k.runs) ? 0 : n * width * kLanes<Compute<S>>;
}

// For every row in [0, n): add the product of the row's k range with the panel to accumulators that lie
// somewhere, and hand them to sink(row, acc). `a(row)` is where the row's k range starts. place(row, r,
// first, last) says where the accumulators lie for a piece of the k range; r counts the rows of a tile, and
// before the first piece the accumulators must hold what the sums start from.
template <class S, class Panel, class RowOf, class Place, class Sink>
RNNFUSED_HD void product_at(Index n, Runs k, int width, const Panel* panel, RowOf a, Place place, Sink sink) {
  const Index row_scalars = width * kLanes<Compute<S>>;
  const Index most = max_rows(width);
  const Index tiles = (n + most - 1) / most;
  const Index unit = k.runs == 1 ? 1 : k.length;
  const Index total = k.runs == 1 ? k.length : k.runs;
  const Index piece = piece_of<S>(k, width);

  for (Index from = 0; from == 0 || from < total; from += piece) {
    const bool first = from == 0, last = from + piece >= total;
    const Index count = last ? total - from : piece;
    const Runs part = k.runs == 1 ? Runs{1, count, 0} : Runs{count, k.length, k.stride};
    const Index skip = k.runs == 1 ? from : from * k.stride;
    for (Index t = 0; t < tiles; ++t) {
      // An even split: a full tile and a small remainder would waste the remainder's bandwidth.
      const Index begin = n * t / tiles, rows = n * (t + 1) / tiles - begin;
      const Left<S>* left[kMaxRows];
      Sum<S>* acc[kMaxRows];
      for (Index r = 0; r < rows; ++r) {
        left[r] = a(begin + r) + skip;
        acc[r] = place(begin + r, r, first, last);
      }
      kTiles<S, Panel>.fn[width - 1][rows - 1](left, part, panel + from * unit * row_scalars, acc);
      if (!last) continue;
      for (Index r = 0; r < rows; ++r) sink(begin + r, acc[r]);
    }
  }
}

// The same with accumulators that nobody keeps: init(row, acc) starts them, and they are gone after sink.
// `partial` holds partial_scalars.
template <class S, class Panel, class RowOf, class Init, class Sink>
RNNFUSED_HD void product(Index n, Runs k, int width, const Panel* panel, Sum<S>* partial, RowOf a, Init init,
                         Sink sink) {
  using T = Sum<S>;
  const Index row_scalars = width * kLanes<T>;
  alignas(64) T stack[tile_scalars<T>()];
  product_at<S>(
      n, k, width, panel, a,
      [&](Index row, Index r, bool first, bool last) {
        T* acc = first && last ? stack + r * row_scalars : partial + row * row_scalars;
        if (first) init(row, acc);
        return acc;
      },
      sink);
}

// The products of R rows with a, lanes not yet summed.
template <class S, int R>
RNNFUSED_HD void dot_rows(const S* rows, Index size, const S* a, Native<Compute<S>>* out) {
  using V = Native<Compute<S>>;
  constexpr Index count = kLanes<Compute<S>> * kTerms<S>;
  V sum[R] = {};
  Index k = 0;
  for (; k + count <= size; k += count) {
    const Terms<S> right = load_terms<S>(a + k);
    for (Index r = 0; r < R; ++r) sum[r] = add_product<S>(load_terms<S>(rows + r * size + k), right, sum[r]);
  }
  if (k < size) {
    const Terms<S> right = load_terms<S>(a + k, size - k);
    for (Index r = 0; r < R; ++r)
      sum[r] = add_product<S>(load_terms<S>(rows + r * size + k, size - k), right, sum[r]);
  }
  for (Index r = 0; r < R; ++r) out[r] = sum[r];
}

// acc[lane] += sum_k rows[lane][k] a[k] for `lanes` rows of a matrix as it lies: what a sequence of a few
// rows takes instead of a tile, since packing the weights would cost more than all that is done with them.
template <class S>
void dots(const S* rows, Index lanes, Index size, const S* a, Compute<S>* acc) {
  using T = Compute<S>;
  using V = Native<T>;
  constexpr Index L = kLanes<T>;
  constexpr int R = L < 4 ? L : 4;  // the prefetcher follows a few rows at once, not sixteen
  V sum[L] = {};
  for (Index lane = 0; lane < L; lane += R) {
    if (lane + R <= lanes) {
      dot_rows<S, R>(rows + lane * size, size, a, sum + lane);
      continue;
    }
    for (Index i = lane; i < lane + R; ++i) {
      if (i < lanes) dot_rows<S, 1>(rows + i * size, size, a, sum + i);
    }
  }
  store(acc, load<V>(acc) + lane_sums<T>(sum));
}

}  // namespace rnnfused::RNNFUSED_ISA
