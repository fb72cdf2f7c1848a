// A layer's forward recurrence as one launch. Every warp keeps its rows of W_hh in registers, as the first
// operand of matrix instructions; the batch are the columns of the second one, which is h. Blocks of a
// cluster send each other their units of h through shared memory (docs/gpu.md shows the protocol); clusters,
// and blocks of their own, are slices of the batch that know nothing of each other.
#pragma once

#include "cuda/resident.cuh"
#include "cuda/resident_rows.cuh"

namespace rnnfused::cuda {

// What a kernel leaves out, for tests that must see it reported; nothing in the product.
enum class ForwardFault {
  none,
  no_first_sync,
  no_last_sync,
  one_buffer,
  no_warp_sync,
  no_arm,
  no_arrival,
  one_result,
  two_inputs
};

// Sizes of a kernel, and where what is in its shared memory.
template <class Cell, class T, int Depth, int M, int N, Exchange X, int Warps, int Held, Products P>
struct ForwardSizes {
  using Map = TileMap<Cell>;
  using Op = Operand<T, P>;
  static constexpr int tiles = Depth / Op::depth, columns = kEight * N;
  static constexpr int threads = Warps * 32, block_units = Warps * Map::units * M;
  using Weights = Operands<M * tiles, Held, Op::words>;
  using Layout = StateLayout<T, columns>;  // of h
  static constexpr int buffer = columns * Depth, stage = columns * Map::units;
  // Sums of a tile over its depth, in so many chains: an instruction waits for the one before it in its
  // chain. The number must not depend on N, on which the plan decides by the batch, or the bits would.
  static constexpr int chains = M == 1 ? 4 : 2;
  static_assert(tiles % chains == 0, "whole rounds of chains");
  static_assert(X == Exchange::block || M == 1, "a warp stages the units of one tile");
  static_assert(X == Exchange::cluster || Depth == block_units, "a block that is alone has all units");

  // While weights are loaded, half of the rows of every warp's tile lie in shared memory, so many columns at
  // a time.
  static constexpr int loaded = Depth < 256 ? Depth : 256, pitch = loaded + kChunk<T>;

  // Rows of a step: the input's projection, two steps ahead; y, what is taped, and c, of this step and the
  // last.
  using Gates = RowTile<GateOf<Cell, T>, columns, block_units>;
  using States = RowTile<T, columns, block_units>;
  using Wide = RowTile<Compute<T>, columns, block_units>;

  static constexpr size_t kept = 0;                             // Weights
  static constexpr size_t h = kept + Weights::bytes(Warps);     // [2, Depth / 4, columns, 4]
  static constexpr size_t stages = h + 2 * buffer * sizeof(T);  // [warps, columns, units]
  static constexpr size_t inputs = stages + (X == Exchange::cluster ? Warps * stage * sizeof(T) : 0);  // [3]
  static constexpr size_t results = inputs + 3 * Gates::bytes(Cell::gates);  // [2], each of
  static constexpr size_t tape_of_result = States::bytes(1);                 // y, then what is taped,
  static constexpr size_t cell_of_result = tape_of_result + Gates::bytes(Cell::taped);  // and then c
  static constexpr size_t result = cell_of_result + (Cell::states > 1 ? Wide::bytes(1) : 0);
  static constexpr size_t lengths = results + 2 * result;  // [columns]
  static constexpr size_t loading = h;                     // [warps, 8, pitch]
  static constexpr size_t end_of_lengths = lengths + columns * sizeof(int);
  static constexpr size_t end_of_loading = loading + size_t(Warps * 8 * pitch) * sizeof(T);
  static constexpr size_t end = end_of_lengths > end_of_loading ? end_of_lengths : end_of_loading;
  static constexpr size_t full = (end + 15) / 16 * 16;  // [2]
  static constexpr size_t done = full + 2 * sizeof(Mbarrier);
  static constexpr size_t bytes = done + sizeof(Mbarrier);
  static_assert(bytes <= kMostSharedBytes, "what a multiprocessor has");
};

// Which of a tile's units and columns a lane works on, and with which sequence of the batch.
template <class Cell, int N>
struct Columns {
  using Map = TileMap<Cell>;
  int first;                    // sequence
  int length[N][Map::columns];  // of this lane's

  __device__ Columns(const Directed& of, int slice, int lane) : first(slice) {
    RNNFUSED_UNROLL
    for (int n = 0; n < N; ++n) {
      RNNFUSED_UNROLL
      for (int i = 0; i < Map::columns; ++i) length[n][i] = of.length(sequence(lane, n, i));
    }
  }
  __device__ int sequence(int lane, int n, int i) const { return first + n * kEight + Map::column(lane, i); }
  __device__ int length_of(int n, int i) const { return length[n][i % Map::columns]; }
};

// What a thread moves of every step's rows, and where the block has them meanwhile.
template <class Cell, class T, class At>
class ForwardRows {
 public:
  using Gate = GateOf<Cell, T>;
  using Gates = typename At::Gates;
  using States = typename At::States;
  using Wide = typename At::Wide;

  // The block's units are those from `unit` on.
  __device__ ForwardRows(const ResidentForward<Cell, T>& s, int d, int slice, int unit, Shared<int> lengths)
      : whole_(int(s.hidden) % kChunk<T> == 0 && is_whole(s.gates) && is_whole(s.y) && is_whole(s.cell)) {
    const int H = int(s.hidden), units = H - unit, gate_step = Cell::accumulators * H,
              y_step = int(s.directions) * H;
    Gate* const gates =
        s.gates + (d * s.gates_stride + (slice - of_direction(s.first_row, d)) * gate_step + unit);
    T* const y = s.y + (Index(slice) * y_step + d * H + unit);
    float* const cell = s.cell ? s.cell + (d * s.cell_stride + Index(slice) * H + unit) : nullptr;
    int i = int(threadIdx.x);
    RNNFUSED_UNROLL
    for (RowPiece& piece : fetched_) {
      if (i < kFetched)
        piece.take<Gates, At::columns>(i, gates + Cell::x_first * H, units, gate_step, H, 0, lengths);
      i += At::threads;
    }
    i = int(threadIdx.x);
    RNNFUSED_UNROLL
    for (RowPiece& piece : flushed_) {
      if (i < kY) {
        piece.take<States, At::columns>(i, y, units, y_step, 0, 0, lengths);
      } else if (i < kY + kTape) {
        piece.take<Gates, At::columns>(i - kY, s.tapes_gates ? gates : nullptr, units, gate_step, H,
                                       At::tape_of_result, lengths);
      } else if (i < kFlushed) {
        piece.take<Wide, At::columns>(i - kY - kTape, cell, units, H, 0, At::cell_of_result, lengths);
      }
      i += At::threads;
    }
  }

  // The input's projection of a step, whose first row is `row`, on its way into that buffer.
  __device__ void fetch(int step, int row, int buffer) const {
    RNNFUSED_UNROLL
    for (const RowPiece& piece : fetched_)
      piece.fetch(whole_, step, row, shared_cast<RowPiece::Grain>(input(buffer)));
  }
  // Results of a step from their buffer into memory.
  __device__ void flush(int step, int row, int buffer) const {
    RNNFUSED_UNROLL
    for (const RowPiece& piece : flushed_)
      piece.flush(whole_, step, row, shared_cast<RowPiece::Grain>(y(buffer)));
  }

  // Of a buffer: what fetch() brings, and what flush() takes.
  static __device__ Shared<Gate> input(int buffer) {
    return shared_memory<Gate>(At::inputs) + buffer * Gates::elements(Cell::gates);
  }
  static __device__ Shared<T> y(int buffer) { return result<T>(buffer, 0); }
  static __device__ Shared<Gate> tape(int buffer) { return result<Gate>(buffer, At::tape_of_result); }
  static __device__ Shared<float> cell(int buffer) { return result<float>(buffer, At::cell_of_result); }

 private:
  template <class E>
  static __device__ Shared<E> result(int buffer, size_t begin) {
    return shared_memory<E>(At::results + size_t(buffer) * At::result + begin);
  }

  static constexpr int kFetched = Gates::pieces(Cell::gates), kY = States::pieces(1),
                       kTape = Gates::pieces(Cell::taped),
                       kFlushed = kY + kTape + (Cell::states > 1 ? Wide::pieces(1) : 0);
  RowPiece fetched_[(kFetched + At::threads - 1) / At::threads],
      flushed_[(kFlushed + At::threads - 1) / At::threads];
  bool whole_;
};

template <class Cell, class T, int Depth, int M, int N, Exchange X, int Warps, int Held, Products P,
          ForwardFault F = ForwardFault::none>
__global__ void __launch_bounds__(Warps * 32, 1)
    resident_forward(const __grid_constant__ ResidentForward<Cell, T> s) {
  if constexpr (!kCompiles<X>) {
    trap();
  } else {
    using Op = Operand<T, P>;
    using Number = typename Op::Number;
    using Map = TileMap<Cell>;
    using Gate = GateOf<Cell, T>;
    using At = ForwardSizes<Cell, T, Depth, M, N, X, Warps, Held, P>;
    using Layout = typename At::Layout;
    constexpr int A = Cell::accumulators, G = Cell::gates, S = Cell::states, kCells = Map::cells;

    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), d = int(blockIdx.y);
    const unsigned size = X == Exchange::cluster ? cluster_size() : 1;
    const unsigned rank = X == Exchange::cluster ? cluster_rank() : 0;
    const int H = int(s.hidden), batch = int(s.walk.batch);
    const Directed in{s.walk, d == 1};
    const int slice = int(blockIdx.x / size) * At::columns;
    const Columns<Cell, N> columns(in, slice, lane);
    int position, end;
    in.clip(slice, At::columns, position, end);
    const int steps = end - position;
    // The first unit of this warp's tile m.
    const auto first = [&](int m) { return int(rank) * At::block_units + (m * Warps + warp) * Map::units; };
    constexpr int kInputs = F == ForwardFault::two_inputs ? 2 : 3,
                  kResults = F == ForwardFault::one_result ? 1 : 2;
    const int piece = first(0) * At::columns;  // of h, that a warp of a cluster makes
    const Shared<T> h = shared_memory<T>(At::h), stages = shared_memory<T>(At::stages);
    // h of a step has come; all warps of the block have done a step.
    const Shared<Mbarrier> full = shared_memory<Mbarrier>(At::full), done = shared_memory<Mbarrier>(At::done);
    const unsigned sent = unsigned(At::columns * At::block_units * int(size) * int(sizeof(T)));

    if constexpr (X == Exchange::cluster) {
      if (threadIdx.x == 0) {
        for (unsigned k = 0; k < 2; ++k) mbarrier_init(full + k, 1);
        mbarrier_init(done, Warps);
        fence_mbarrier_init();
        if (F != ForwardFault::no_arm && steps > 1) mbarrier_arrive_expect_tx(full + 1, sent);
        if (F != ForwardFault::no_arm && steps > 2) mbarrier_arrive_expect_tx(full, sent);
      }
    }

    typename At::Weights w(shared_memory<uint4>(At::kept));
    const Shared<T> loading = shared_memory<T>(At::loading);
    RNNFUSED_UNROLL
    for (int m = 0; m < M; ++m) {
      RNNFUSED_UNROLL
      for (int half = 0; half < 2; ++half) {
        RNNFUSED_UNROLL
        for (int column = 0; column < Depth; column += At::loaded) {
          stage_weights<At::threads, Warps * 8, At::loaded, At::pitch>(
              s.weights + Index(d) * G * H * H, H, column, loading, [&](int i) {
                const int of = i % 8 + 8 * half, gate = Map::gate_of_row(of);
                const int unit = first(m) + (i / 8 - warp) * Map::units + Map::unit_of_row(of);
                return gate < G && unit < H ? gate * H + unit : -1;
              });
          cp_async_wait_all();
          block_sync();
          RNNFUSED_UNROLL
          for (int tile = 0; tile < At::loaded / Op::depth; ++tile) {
            RNNFUSED_UNROLL
            for (int part = 0; part < 2; ++part) {
              const int at = (warp * 8 + lane / 4) * At::pitch + unit_of<T>(tile, lane, part);
              T some[kPair<T>];
              RNNFUSED_UNROLL
              for (int i = 0; i < kPair<T>; ++i) some[i] = loading[at + i];
              Op::set(w, m * At::tiles + column / Op::depth + tile, 2 * part + half, some);
            }
          }
          block_sync();
        }
      }
    }

    // h before the first position; zeros where there are no units or sequences, in both buffers, for no peer
    // sends what lies beyond the cluster's units.
    const auto state_before = [&](int b, int unit) -> float {
      const Index at = (Index(d) * batch + b) * H + unit;
      if (s.continues && s.h_wide) return s.h_wide[at];
      // What is cut before the first step begins with zeros.
      if (s.walk.resets && !s.continues && d == 0 && in.is_cut_before(0, b, in.length(b))) return 0;
      return widen(s.h[at]);
    };
    for (int i = int(threadIdx.x); i < At::columns * Depth; i += At::threads) {
      const int column = i / Depth, unit = i % Depth, b = slice + column;
      h[Layout::at(column, unit)] = b < batch && unit < H ? Op::round(state_before(b, unit)) : T{};
      h[At::buffer + Layout::at(column, unit)] = T{};
    }
    const Shared<int> lengths = shared_memory<int>(At::lengths);
    for (int i = int(threadIdx.x); i < At::columns; i += At::threads) lengths[i] = in.length(slice + i);
    // Of cells that are not there something is read, and dropped.
    const Shared<Gate> inputs = shared_memory<Gate>(At::inputs);
    for (int i = int(threadIdx.x); i < 3 * At::Gates::elements(G); i += At::threads) inputs[i] = Gate{};

    // This lane's cells: biases and states.
    float bias[M][kCells][A], prev[N][M][kCells][S];
    RNNFUSED_UNROLL
    for (int m = 0; m < M; ++m) {
      RNNFUSED_UNROLL
      for (int i = 0; i < kCells; ++i) {
        const int unit = first(m) + Map::unit(lane, i);
        const bool is_unit = unit < H;
        float own[A][1] = {};
        if (is_unit) load_biases<Cell>(of_direction(s.biases, d), H, unit, own);
        RNNFUSED_UNROLL
        for (int a = 0; a < A; ++a) bias[m][i][a] = own[a][0];
        RNNFUSED_UNROLL
        for (int n = 0; n < N; ++n) {
          const int b = columns.sequence(lane, n, i);
          const bool there = is_unit && b < batch;
          prev[n][m][i][0] = there ? state_before(b, unit) : 0;
          if constexpr (S > 1) {
            const bool zero =
                !s.continues && there && d == 0 && in.is_cut_before(0, b, columns.length_of(n, i));
            prev[n][m][i][1] = there && !zero ? s.c[(Index(d) * batch + b) * H + unit] : 0;
          }
        }
      }
    }
    block_sync();  // lengths are there, and inputs zero

    const int unit_0 = int(rank) * At::block_units;
    const ForwardRows<Cell, T, At> rows(s, d, slice, unit_0, lengths);
    bool cut[N][Map::columns] = {};  // after the step
    const auto find_cuts = [&](int step) {
      RNNFUSED_UNROLL
      for (int n = 0; n < N; ++n) {
        RNNFUSED_UNROLL
        for (int i = 0; i < Map::columns; ++i)
          cut[n][i] = in.is_cut_after(step, columns.sequence(lane, n, i), columns.length[n][i]);
      }
    };
    // The first row of a position's step; asked for before it is needed.
    const auto row_of = [&](int at) { return at < end ? in.row(in.step(at)) : 0; };
    int row_before = 0, row = row_of(position), next_row = row_of(position + 1),
        row_after = row_of(position + 2);
    int own[N];  // where this lane's operands begin
    RNNFUSED_UNROLL
    for (int n = 0; n < N; ++n) own[n] = Layout::at(n * kEight + lane / 4, lane % 4 * 4);

    if (steps > 0) {
      find_cuts(in.step(position));
      rows.fetch(in.step(position), row, 0);
      if (steps > 1) rows.fetch(in.step(position + 1), next_row, 1);
    }
    cp_async_wait_all();
    if (F == ForwardFault::no_first_sync) {
      block_sync();
    } else {
      sync_all<X>();
    }

    for (unsigned u = 0; position < end; ++position, ++u) {
      const int step = in.step(position);
      const bool last = position + 1 == end;
      if (u > 0) {
        if constexpr (X == Exchange::cluster) {
          mbarrier_wait(full + u % 2, (u - 1) / 2);
          if (threadIdx.x == 0 && position + 2 < end) mbarrier_arrive_expect_tx(full + u % 2, sent);
        } else {
          block_sync();
        }
      }
      const Shared<T> now = h + (F == ForwardFault::one_buffer ? 0 : int(u % 2) * At::buffer);
      float sums[N][M][At::chains][4] = {};
      RNNFUSED_UNROLL
      for (int tile = 0; tile < At::tiles; tile += 2) {
        RNNFUSED_UNROLL
        for (int n = 0; n < N; ++n) {
          uint32_t low[2], high[2];
          load_operands<T>(low, high, now + (own[n] + tile * Op::depth * At::columns), 16 * At::columns);
          const typename Op::Second first_second = Op::second(low), next_second = Op::second(high);
          RNNFUSED_UNROLL
          for (int m = 0; m < M; ++m) {
            w.use(m * At::tiles + tile,
                  [&](const auto& a) { Op::multiply(sums[n][m], tile, a, first_second); });
            w.use(m * At::tiles + tile + 1,
                  [&](const auto& a) { Op::multiply(sums[n][m], tile + 1, a, next_second); });
          }
        }
      }
      // Behind the products, which take their time: what all warps have done of the last step.
      if constexpr (X == Exchange::cluster) {
        if (F != ForwardFault::no_arrival && u > 0) mbarrier_wait(done, u - 1);
      }
      const Shared<Gate> x = rows.input(int(u % kInputs));

      float next[N][M][kCells][S], taped[N][M][kCells][A];
      const Shared<T> stage = stages + warp * At::stage;
      const int other = F == ForwardFault::one_buffer ? 0 : int((u + 1) % 2) * At::buffer;
      RNNFUSED_UNROLL
      for (int n = 0; n < N; ++n) {
        RNNFUSED_UNROLL
        for (int m = 0; m < M; ++m) {
          float sum[4], gathered[kCells][Map::rows];
          RNNFUSED_UNROLL
          for (int k = 0; k < 4; ++k) {
            sum[k] = sums[n][m][0][k];
            RNNFUSED_UNROLL
            for (int chain = 1; chain < At::chains; ++chain) sum[k] += sums[n][m][chain][k];
          }
          Map::gather(sum, lane, gathered);
          RNNFUSED_UNROLL
          for (int i = 0; i < kCells; ++i) {
            const int column = n * kEight + Map::column(lane, i), unit = Map::unit(lane, i);
            const int own_unit = first(m) - unit_0 + unit;
            Number acc[A], before[S], after[S], kept[A];
            RNNFUSED_UNROLL
            for (int a = 0; a < A; ++a) {
              float sum_a = bias[m][i][a];
              if (feeds<Cell>(Cell::x_first, a))
                sum_a = widen(Gate(x[At::Gates::at(a - Cell::x_first, column, own_unit)])) + sum_a;
              if (feeds<Cell>(Cell::h_first, a)) sum_a += gathered[i][(a - Cell::h_first) % Map::rows];
              acc[a] = sum_a;
            }
            RNNFUSED_UNROLL
            for (int k = 0; k < S; ++k) before[k] = prev[n][m][i][k];
            Cell::forward(acc, before, after, kept);
            const bool there = step < columns.length_of(n, i) && first(m) + unit < H;
            const bool zeroed = cut[n][i % Map::columns];
            RNNFUSED_UNROLL
            for (int k = 0; k < S; ++k) {
              next[n][m][i][k] = plain(after[k]);
              if (there) prev[n][m][i][k] = zeroed ? 0.0f : plain(after[k]);
            }
            RNNFUSED_UNROLL
            for (int a = 0; a < Cell::taped; ++a) taped[n][m][i][a] = plain(kept[a]);
            const T operand = Op::round(prev[n][m][i][0]);
            if constexpr (X == Exchange::cluster) {
              stage[Layout::at(column, first(m) + unit) - piece] = operand;
            } else {
              h[other + Layout::at(column, first(m) + unit)] = operand;
            }
          }
        }
      }
      if constexpr (X == Exchange::cluster) {
        if (!last) {
          // Orders this warp's reads of `now` and its writes to `stage` before what its lanes send.
          if (F != ForwardFault::no_warp_sync) warp_sync();
          // A lane sends 16 bytes of it, to every so many-th peer; beginning with its own block.
          constexpr int kChunks = At::stage / kChunk<T>;
          static_assert(32 % kChunks == 0, "whole chunks for all lanes");
          const int chunk = lane % kChunks * kChunk<T>;
          const uint4 value = shared_cast<uint4>(stage + chunk)[0];
          for (unsigned k = unsigned(lane / kChunks); k < size; k += 32 / kChunks) {
            const unsigned peer = rank + k < size ? rank + k : rank + k - size;
            st_async(remote_cast<uint4>(cluster_map(h, peer) + (other + piece + chunk)), value,
                     cluster_map(full, peer) + int((u + 1) % 2));
          }
        }
      }
      // What only memory waits for, after what the peers wait for: the inputs of the step after the next, the
      // last step's rows on their way to memory, and this one's to where all of the block can take them.
      if (position + 2 < end) rows.fetch(in.step(position + 2), row_after, int((u + 2) % kInputs));
      cp_async_commit();  // of a step without, an empty group: the newest but one is the next step's
      if (u > 0) rows.flush(in.step(position - 1), row_before, int((u - 1) % kResults));
      const int result = int(u % kResults);
      const Shared<T> y = rows.y(result);
      const Shared<Gate> tape = rows.tape(result);
      const Shared<float> cell = rows.cell(result);
      RNNFUSED_UNROLL
      for (int n = 0; n < N; ++n) {
        RNNFUSED_UNROLL
        for (int m = 0; m < M; ++m) {
          RNNFUSED_UNROLL
          for (int i = 0; i < kCells; ++i) {
            const int column = n * kEight + Map::column(lane, i), unit = Map::unit(lane, i) + first(m);
            y[At::States::at(0, column, unit - unit_0)] = narrow<T>(next[n][m][i][0]);
            if constexpr (S > 1) {
              cell[At::Wide::at(0, column, unit - unit_0)] = next[n][m][i][1];
              if (s.cells && step < columns.length_of(n, i) && unit < H)
                s.cells[Index(row + slice + column) * (int(s.directions) * H) + d * H + unit] =
                    narrow<T>(next[n][m][i][1]);
            }
            if (!s.tapes_gates) continue;
            RNNFUSED_UNROLL
            for (int a = 0; a < Cell::taped; ++a)
              tape[At::Gates::at(a, column, unit - unit_0)] = narrow<Gate>(taped[n][m][i][a]);
          }
        }
      }
      if (last) break;
      cp_async_wait<1>();
      if constexpr (X == Exchange::cluster) {
        warp_sync();
        if (lane == 0) mbarrier_arrive(done);
      }
      row_before = row, row = next_row, next_row = row_after, row_after = row_of(position + 3);
      find_cuts(in.step(position + 1));
    }
    if (steps > 0) {
      block_sync();
      rows.flush(in.step(end - 1), row, (steps - 1) % kResults);
    }

    RNNFUSED_UNROLL
    for (int n = 0; n < N; ++n) {
      RNNFUSED_UNROLL
      for (int m = 0; m < M; ++m) {
        RNNFUSED_UNROLL
        for (int i = 0; i < kCells; ++i) {
          const int b = columns.sequence(lane, n, i), unit = first(m) + Map::unit(lane, i);
          if (unit >= H || b >= batch) continue;
          const Index at = (Index(d) * batch + b) * H + unit;
          s.h[at] = narrow<T>(prev[n][m][i][0]);
          if (s.h_wide) s.h_wide[at] = prev[n][m][i][0];
          if constexpr (S > 1) s.c[at] = prev[n][m][i][1];
        }
      }
    }
    if constexpr (X == Exchange::cluster) {
      if (F != ForwardFault::no_last_sync) cluster_sync();
    }
  }
}

}  // namespace rnnfused::cuda
