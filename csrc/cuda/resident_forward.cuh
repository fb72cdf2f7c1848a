// A layer's forward recurrence as one launch. Every warp keeps its rows of W_hh in registers, as the first
// operand of matrix instructions; the batch are the columns of the second one, which is h. Blocks of a
// cluster send each other their units of h through shared memory (docs/gpu.md shows the protocol); clusters,
// and blocks of their own, are slices of the batch that know nothing of each other.
#pragma once

#include "cuda/resident.cuh"

namespace rnnfused::cuda {

// What a kernel leaves out, for tests that must see it reported; nothing in the product.
enum class ForwardFault { none, no_first_sync, no_last_sync, one_buffer, no_warp_sync, one_stage, no_arm };

// Sizes of a kernel, and where what is in its shared memory.
template <class Cell, class T, int Depth, int M, int N, Exchange X, int Warps, int Held>
struct ForwardSizes {
  using Map = TileMap<Cell>;
  static constexpr int tiles = Depth / Operand<T>::depth, columns = kEight * N;
  static constexpr int threads = Warps * 32, block_units = Warps * Map::units * M;
  using Weights = Operands<M * tiles, Held>;
  static constexpr int row = Depth + kChunk<T>;  // of h, with what keeps banks apart
  static constexpr int buffer = columns * row, stage = columns * Map::units;
  // Sums of a tile over its depth, in so many chains: an instruction waits for the one before it in its
  // chain. The number must not depend on N, on which the plan decides by the batch, or the bits would.
  static constexpr int chains = M == 1 ? 4 : 2;
  static_assert(tiles % chains == 0, "whole rounds of chains");
  static_assert(X == Exchange::block || M == 1, "a warp stages the units of one tile");
  static_assert(X == Exchange::cluster || Depth == block_units, "a block that is alone has all units");

  // While weights are loaded, half of the rows of every warp's tile lie in shared memory, so many columns at
  // a time.
  static constexpr int loaded = Depth < 256 ? Depth : 256, pitch = loaded + kChunk<T>;

  static constexpr size_t kept = 0;                             // Weights
  static constexpr size_t h = kept + Weights::bytes(Warps);     // [2, columns, row]
  static constexpr size_t stages = h + 2 * buffer * sizeof(T);  // [warps, 2, columns, units]
  static constexpr size_t loading = h;                          // [warps, 8, pitch]
  static constexpr size_t end_of_stages =
      stages + (X == Exchange::cluster ? 2 * Warps * stage * sizeof(T) : 0);
  static constexpr size_t end_of_loading = loading + size_t(Warps * 8 * pitch) * sizeof(T);
  static constexpr size_t end = end_of_stages > end_of_loading ? end_of_stages : end_of_loading;
  static constexpr size_t full = (end + 15) / 16 * 16;  // [2]
  static constexpr size_t bytes = full + 2 * sizeof(Mbarrier);
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

template <class Cell, class T, int Depth, int M, int N, Exchange X, int Warps, int Held,
          ForwardFault F = ForwardFault::none>
__global__ void __launch_bounds__(Warps * 32, 1)
    resident_forward(const __grid_constant__ ResidentForward<Cell, T> s) {
  if constexpr (!kCompiles<X>) {
    trap();
  } else {
    using Op = Operand<T>;
    using Map = TileMap<Cell>;
    using Gate = GateOf<Cell, T>;
    using At = ForwardSizes<Cell, T, Depth, M, N, X, Warps, Held>;
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
    const Shared<T> h = shared_memory<T>(At::h), stages = shared_memory<T>(At::stages);
    const Shared<Mbarrier> full = shared_memory<Mbarrier>(At::full);
    const unsigned sent = unsigned(At::columns * At::block_units * int(size) * int(sizeof(T)));

    if constexpr (X == Exchange::cluster) {
      if (threadIdx.x == 0) {
        for (unsigned k = 0; k < 2; ++k) mbarrier_init(full + k, 1);
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
              const int at = (warp * 8 + lane / 4) * At::pitch + tile * Op::depth + k_of<T>(lane, part);
              T some[kPair<T>];
              RNNFUSED_UNROLL
              for (int i = 0; i < kPair<T>; ++i) some[i] = loading[at + i];
              w.set(m * At::tiles + column / Op::depth + tile, 2 * part + half, Op::make(some));
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
      h[column * At::row + unit] = b < batch && unit < H ? Op::round(state_before(b, unit)) : T{};
      h[At::buffer + column * At::row + unit] = T{};
    }

    // This lane's cells: biases, states, and of the step that comes the input's projection.
    float bias[M][kCells][A], prev[N][M][kCells][S];
    Gate x[N][M][kCells][A] = {};
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
    // body(n, m, i, whether there is such a cell at the step, how many sequences and units it lies beyond the
    // lane's first)
    const auto for_cells = [&](int step, auto body) {
      RNNFUSED_UNROLL
      for (int n = 0; n < N; ++n) {
        RNNFUSED_UNROLL
        for (int m = 0; m < M; ++m) {
          RNNFUSED_UNROLL
          for (int i = 0; i < kCells; ++i) {
            const int unit = first(m) + Map::unit(lane, i);
            body(n, m, i, step < columns.length_of(n, i) && unit < H, n * kEight + Map::column_step(i),
                 m * Warps * Map::units + Map::unit_step(i));
          }
        }
      }
    };

    // Where a step's rows are in memory, from this lane's first cell on; from step to step they move by whole
    // rows.
    const int gate_step = A * H, y_step = int(s.directions) * H;
    const int first_sequence = columns.sequence(lane, 0, 0), first_unit = first(0) + Map::unit(lane, 0);
    int row = steps > 0 ? in.row(in.step(position)) : 0;
    Gate* gates = s.gates + (d * s.gates_stride +
                             (row - of_direction(s.first_row, d) + first_sequence) * gate_step + first_unit);
    Index of_y = Index(row + first_sequence) * y_step + d * H + first_unit;
    Index of_cell = d * s.cell_stride + Index(row + first_sequence) * H + first_unit;
    bool cut[N][Map::columns] = {};  // after the step
    const auto load_step = [&](int step, const Gate* from) {
      for_cells(step, [&](int n, int m, int i, bool there, int sequences, int units) {
        if (!there) return;
        RNNFUSED_UNROLL
        for (int a = 0; a < A; ++a) {
          if (feeds<Cell>(Cell::x_first, a)) x[n][m][i][a] = from[sequences * gate_step + a * H + units];
        }
      });
      RNNFUSED_UNROLL
      for (int n = 0; n < N; ++n) {
        RNNFUSED_UNROLL
        for (int i = 0; i < Map::columns; ++i)
          cut[n][i] = in.is_cut_after(step, columns.sequence(lane, n, i), columns.length[n][i]);
      }
    };
    // What only memory waits for, after what the peers wait for.
    const auto store_step = [&](int step, const float (&next)[N][M][kCells][S],
                                const float (&taped)[N][M][kCells][A]) {
      for_cells(step, [&](int n, int m, int i, bool there, int sequences, int units) {
        if (!there) return;
        T* const y = s.y + of_y;
        y[sequences * y_step + units] = narrow<T>(next[n][m][i][0]);
        if constexpr (S > 1) {
          if (s.cells) (s.cells + of_y)[sequences * y_step + units] = narrow<T>(next[n][m][i][1]);
          if (s.cell) (s.cell + of_cell)[sequences * H + units] = next[n][m][i][1];
        }
        if (!s.tapes_gates) return;
        RNNFUSED_UNROLL
        for (int a = 0; a < Cell::taped; ++a)
          gates[sequences * gate_step + a * H + units] = narrow<Gate>(taped[n][m][i][a]);
      });
    };

    if (steps > 0) load_step(in.step(position), gates);
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
          uint32_t b[4];
          ldmatrix(b, now + ((n * kEight + lane % 8) * At::row + tile * Op::depth + lane / 8 * kChunk<T>));
          const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
          RNNFUSED_UNROLL
          for (int m = 0; m < M; ++m) {
            w.use(m * At::tiles + tile,
                  [&](const uint32_t (&a)[4]) { Op::multiply(sums[n][m][tile % At::chains], a, low); });
            w.use(m * At::tiles + tile + 1, [&](const uint32_t (&a)[4]) {
              Op::multiply(sums[n][m][(tile + 1) % At::chains], a, high);
            });
          }
        }
      }

      float next[N][M][kCells][S], taped[N][M][kCells][A];
      // Two, for the barrier of the warp orders the reads of one with the writes of the step after the next.
      const Shared<T> stage =
          stages + (warp * 2 + (F == ForwardFault::one_stage ? 0 : int(u % 2))) * At::stage;
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
            Approx acc[A], before[S], after[S], tape[A];
            RNNFUSED_UNROLL
            for (int a = 0; a < A; ++a) {
              float sum_a = widen(x[n][m][i][a]) + bias[m][i][a];
              if (feeds<Cell>(Cell::h_first, a)) sum_a += gathered[i][(a - Cell::h_first) % Map::rows];
              acc[a] = sum_a;
            }
            RNNFUSED_UNROLL
            for (int k = 0; k < S; ++k) before[k] = prev[n][m][i][k];
            Cell::forward(acc, before, after, tape);
            const int column = n * kEight + Map::column(lane, i), unit = Map::unit(lane, i);
            const bool there = step < columns.length_of(n, i) && first(m) + unit < H;
            const bool zeroed = cut[n][i % Map::columns];
            RNNFUSED_UNROLL
            for (int k = 0; k < S; ++k) {
              next[n][m][i][k] = plain(after[k]);
              if (there) prev[n][m][i][k] = zeroed ? 0.0f : plain(after[k]);
            }
            RNNFUSED_UNROLL
            for (int a = 0; a < Cell::taped; ++a) taped[n][m][i][a] = plain(tape[a]);
            const T operand = Op::round(prev[n][m][i][0]);
            if constexpr (X == Exchange::cluster) {
              stage[column * Map::units + unit] = operand;
            } else {
              h[other + column * At::row + first(m) + unit] = operand;
            }
          }
        }
      }
      if constexpr (X == Exchange::cluster) {
        if (!last) {
          // Orders this warp's reads of `now` and its writes to `stage` before what its lanes send.
          if (F != ForwardFault::no_warp_sync) warp_sync();
          constexpr int kBytes = Map::units * int(sizeof(T)) > 16 ? 16 : Map::units * int(sizeof(T));
          using Chunk = std::conditional_t<kBytes == 16, uint4, uint2>;
          constexpr int kElements = kBytes / int(sizeof(T)), kOfColumn = Map::units / kElements;
          // A lane sends one chunk, to every so many-th peer; beginning with its own block.
          constexpr int kChunks = At::columns * kOfColumn;
          static_assert(32 % kChunks == 0, "whole chunks for all lanes");
          const int chunk = lane % kChunks, column = chunk / kOfColumn, part = chunk % kOfColumn * kElements;
          const Chunk value = shared_cast<Chunk>(stage + (column * Map::units + part))[0];
          for (unsigned k = unsigned(lane / kChunks); k < size; k += 32 / kChunks) {
            const unsigned peer = rank + k < size ? rank + k : rank + k - size;
            const Remote<T> to = cluster_map(h, peer) + (other + column * At::row + first(0) + part);
            st_async(remote_cast<Chunk>(to), value, cluster_map(full, peer) + int((u + 1) % 2));
          }
        }
      }
      store_step(step, next, taped);
      if (last) break;
      const int next_row = in.row(in.step(position + 1)), moved = next_row - row;
      row = next_row;
      gates += Index(moved) * gate_step;
      of_y += Index(moved) * y_step;
      of_cell += Index(moved) * H;
      load_step(in.step(position + 1), gates);
    }

    for_cells(0, [&](int n, int m, int i, bool, int sequences, int units) {
      const int b = first_sequence + sequences, unit = first_unit + units;
      if (unit >= H || b >= batch) return;
      const Index at = (Index(d) * batch + b) * H + unit;
      s.h[at] = narrow<T>(prev[n][m][i][0]);
      if (s.h_wide) s.h_wide[at] = prev[n][m][i][0];
      if constexpr (S > 1) s.c[at] = prev[n][m][i][1];
    });
    if constexpr (X == Exchange::cluster) {
      if (F != ForwardFault::no_last_sync) cluster_sync();
    }
  }
}

}  // namespace rnnfused::cuda
