// A layer's backward recurrence as one launch. A block holds the rows of W_hh that forward's block of that
// rank held, makes the gate gradients of its units, multiplies them with its rows, and sends each peer the
// part of the product that is of the peer's units: a sum over blocks, each term in a place of its own, added
// up in order.
#pragma once

#include "cuda/resident.cuh"

namespace rnnfused::cuda {

// What a kernel leaves out, for tests that must see it reported; nothing in the product.
enum class BackwardFault { none, no_block_sync, one_partial, one_gradient, no_last_wait, no_arm };

template <class Cell, class T, int Depth, int M, int N, Exchange X, int Warps, int Held, Products P>
struct BackwardSizes {
  using Op = Operand<T, P>;
  static constexpr int columns = kEight * N, threads = Warps * 32;
  static constexpr int block_units = Warps * TileMap<Cell>::units * M;
  // Tiles of hidden units: a warp sums for so many; where there are fewer than warps, several warps share the
  // rows of one.
  static constexpr int all_tiles = Depth / kTileRows;
  static constexpr int tiles = all_tiles > Warps ? all_tiles / Warps : 1;
  static constexpr int shares = all_tiles < Warps ? Warps / all_tiles : 1;
  // Rows of W_hh, gate by gate, and zeros up to whole pairs of instructions.
  static constexpr int pair = 2 * Op::depth * shares;
  static constexpr int rows = (Cell::gates * block_units + pair - 1) / pair * pair;
  static constexpr int deep = rows / Op::depth / shares;  // instructions to a tile
  static constexpr int chains = tiles == 1 ? 4 : tiles == 2 || P == Products::split ? 2 : 1;
  static constexpr int cells = block_units * columns / threads;  // of a thread
  static constexpr int together = threads / block_units;         // columns of all threads' first cells
  static constexpr int row = rows + kChunk<T>;
  static constexpr int buffer = columns * row, slot = N * block_units * kEight;
  using Weights = Operands<tiles * deep, Held, Op::words>;
  static constexpr int most_slots = (Depth + block_units - 1) / block_units * shares;
  // Where in a slot a unit's column is: the 32 bytes of a unit are one piece on their way from block to
  // block, and threads of neighbouring units, which read a column, meet in no bank.
  static __device__ int of_slot(int unit, int column) { return unit * kEight + (column ^ unit / 4 % 8); }
  // While weights are loaded, so many instructions' rows of each share are in shared memory at once.
  static constexpr int pitch = Depth + kChunk<T>;
  static constexpr int loaded = Held < tiles * deep ? 2 : deep % 4 == 0 ? 4 : deep % 3 == 0 ? 3 : 2;
  static_assert(deep % loaded == 0, "whole rounds of loading");
  static_assert(all_tiles % Warps == 0 || Warps % all_tiles == 0, "whole tiles, whole shares");
  static_assert(threads % block_units == 0 && cells * threads == block_units * columns, "whole columns");

  static constexpr size_t kept = 0;                                      // Weights
  static constexpr size_t gradients = kept + Weights::bytes(Warps);      // [2, columns, row]
  static constexpr size_t partial = gradients + 2 * buffer * sizeof(T);  // [2, blocks * shares, N, units, 8]
  static constexpr size_t loading = gradients;                           // [shares, rows, pitch]
  static constexpr size_t end_of_loading = loading + size_t(shares * loaded * Op::depth * pitch) * sizeof(T);
  RNNFUSED_HD static constexpr size_t full(int blocks) {  // [2]
    const size_t end = partial + size_t(2 * blocks * shares * slot) * sizeof(float);
    return ((end > end_of_loading ? end : end_of_loading) + 15) / 16 * 16;
  }
  RNNFUSED_HD static constexpr size_t bytes(int blocks) { return full(blocks) + 2 * sizeof(Mbarrier); }
  static_assert(bytes((Depth + block_units - 1) / block_units) <= kMostSharedBytes,
                "what a multiprocessor has");
};

template <class Cell, class T, int Depth, int M, int N, Exchange X, int Warps, int Held, Products P,
          BackwardFault F = BackwardFault::none>
__global__ void __launch_bounds__(Warps * 32, 1)
    resident_backward(const __grid_constant__ ResidentBackward<Cell, T> s) {
  if constexpr (!kCompiles<X>) {
    trap();
  } else {
    using Op = Operand<T, P>;
    using Number = typename Op::Number;
    using Gate = GateOf<Cell, T>;
    using At = BackwardSizes<Cell, T, Depth, M, N, X, Warps, Held, P>;
    constexpr int A = Cell::accumulators, G = Cell::gates, S = Cell::states, kCells = At::cells;

    const int size = X == Exchange::cluster ? int(cluster_size()) : 1;
    const int rank = X == Exchange::cluster ? int(cluster_rank()) : 0;
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), d = int(blockIdx.y);
    const int H = int(s.hidden), batch = int(s.walk.batch);
    const Directed in{s.walk, d == 1};
    const int slice = int(blockIdx.x) / size * At::columns, first = rank * At::block_units;
    int begin, end;
    in.clip(slice, At::columns, begin, end);
    const Shared<T> gradients = shared_memory<T>(At::gradients);
    const Shared<float> partial = shared_memory<float>(At::partial);
    const Shared<Mbarrier> full = shared_memory<Mbarrier>(At::full(size));
    const int slots = X == Exchange::cluster ? size * At::shares : At::shares;
    const unsigned sent = unsigned(slots * At::block_units * At::columns) * unsigned(sizeof(float));
    if constexpr (X == Exchange::cluster) {
      if (threadIdx.x == 0) {
        for (unsigned k = 0; k < 2; ++k) mbarrier_init(full + k, 1);
        fence_mbarrier_init();
        for (int k = 0; k < 2 && F != BackwardFault::no_arm; ++k) {
          if (k < end - begin) mbarrier_arrive_expect_tx(full + k, sent);
        }
      }
    }

    // W_hh^T: 16 hidden units by this warp's share of the block's rows; through shared memory, some rows at a
    // time.
    const int share = warp % At::shares, first_tile = warp / At::shares * At::tiles;
    typename At::Weights w(shared_memory<uint4>(At::kept));
    const Shared<T> loading = shared_memory<T>(At::loading);
    RNNFUSED_UNROLL
    for (int chunk = 0; chunk < At::deep / At::loaded; ++chunk) {
      constexpr int kRows = At::loaded * Op::depth;
      stage_weights<At::threads, At::shares * kRows, Depth, At::pitch>(
          s.weights + Index(d) * G * H * H, H, 0, loading, [&](int i) {
            const int row = i / kRows * At::deep * Op::depth + chunk * kRows + i % kRows;
            const int gate = row / At::block_units, of = first + row % At::block_units;
            return gate < G && of < H ? gate * H + of : -1;
          });
      cp_async_wait_all();
      block_sync();
      RNNFUSED_UNROLL
      for (int tile = 0; tile < At::tiles; ++tile) {
        RNNFUSED_UNROLL
        for (int deep = 0; deep < At::loaded; ++deep) {
          RNNFUSED_UNROLL
          for (int part = 0; part < 4; ++part) {
            const int to = (first_tile + tile) * kTileRows + lane / 4 + part % 2 * 8;
            const int row = share * kRows + deep * Op::depth + k_of<T>(lane, part / 2);
            T some[kPair<T>];
            RNNFUSED_UNROLL
            for (int i = 0; i < kPair<T>; ++i) some[i] = loading[(row + i) * At::pitch + to];
            Op::set(w, tile * At::deep + chunk * At::loaded + deep, part, some);
          }
        }
      }
      block_sync();
    }
    // Beyond the gates a row of gradients stays zero.
    for (int i = int(threadIdx.x); At::rows > G * At::block_units && i < 2 * At::columns; i += At::threads) {
      for (int k = G * At::block_units; k < At::rows; ++k) gradients[i * At::row + k] = T{};
    }

    // A thread's cells are of one unit; neighbouring threads have neighbouring ones.
    const int own = int(threadIdx.x) % At::block_units, unit = first + own;
    const auto column_of = [&](int i) { return int(threadIdx.x) / At::block_units + i * At::together; };
    float dh[kCells], dc[kCells] = {};
    int length[kCells];
    RNNFUSED_UNROLL
    for (int i = 0; i < kCells; ++i) {
      const int b = slice + column_of(i);
      const bool is_cell = b < batch && unit < H;
      const Index state = (Index(d) * batch + b) * H + unit;
      length[i] = is_cell ? in.length(b) : 0;
      dh[i] = is_cell ? s.dh[state] : 0;
      if (S > 1) dc[i] = is_cell ? s.dc[state] : 0;
    }

    // What a step reads of memory, while it waits for its peers; gradients from outside are added to the
    // states'.
    const int gate_step = A * H, y_step = int(s.directions) * H,
              first_row = int(of_direction(s.first_row, d));
    // As it lies in memory: what waits for a load is the first that makes something of it.
    Gate taped[kCells][A] = {};
    T y_now[kCells] = {}, y_past[kCells] = {}, dy[kCells] = {}, dcells[kCells] = {};
    float c_now[kCells] = {}, c_past[kCells] = {};
    unsigned goes_on = 0;  // a bit for each cell whose state comes from somewhere
    const auto load_step = [&](int position) {
      const int step = in.step(position), before = in.reverse ? step + 1 : step - 1;
      const int row = in.row(step),
                row_before = before >= 0 && before < int(s.walk.steps) ? in.row(before) : 0;
      // Where a row of the batch's first sequence would be; from there 32 bits suffice.
      const Index y_row = Index(row) * y_step + d * H;
      const T *const y = s.y + y_row, *const y_before = s.y + (Index(row_before) * y_step + d * H);
      const T* const h0 = s.h0 + Index(d) * batch * H;
      const Gate* const gates = s.gates + (d * s.gates_stride + Index(row - first_row) * gate_step);
      const float *cell = nullptr, *cell_before = nullptr, *c0 = nullptr;
      if constexpr (S > 1) {
        cell = s.cell + (d * s.cell_stride + Index(row) * H);
        cell_before = s.cell + (d * s.cell_stride + Index(row_before) * H);
        c0 = s.c0 + Index(d) * batch * H;
      }
      goes_on = 0;
      RNNFUSED_UNROLL
      for (int i = 0; i < kCells; ++i) {
        if (step >= length[i]) continue;
        const int b = slice + column_of(i);
        const bool previous = before >= 0 && before < length[i],
                   comes = !in.is_cut_before(step, b, length[i]);
        goes_on |= unsigned(comes) << i;
        const Gate* const from = gates + (b * gate_step + unit);
        RNNFUSED_UNROLL
        for (int a = 0; a < Cell::taped; ++a) taped[i][a] = from[a * H];
        const int at = b * y_step + unit, state = b * H + unit;
        y_now[i] = y[at];
        y_past[i] = previous ? y_before[at] : h0[state];
        if constexpr (S > 1) {
          c_now[i] = cell[state];
          c_past[i] = previous ? cell_before[state] : c0[state];
        }
        // Of the last step of all, where a reset before the first one zeroes the state.
        if (in.reverse && step == 0 && in.is_cut_after(0, b, length[i])) dh[i] = dc[i] = 0;
        if (s.dy) dy[i] = s.dy[y_row + at];
        if (S > 1 && s.dcells) dcells[i] = s.dcells[y_row + at];
      }
    };
    // The product's part that is of this thread's cell, from all blocks in their order. They are loaded
    // before the first is added.
    const auto received = [&](int buffer, int i) {
      const Shared<float> from =
          partial + (buffer * slots * At::slot + column_of(i) / kEight * At::block_units * kEight +
                     At::of_slot(own, column_of(i) % kEight));
      float terms[At::most_slots];
      RNNFUSED_UNROLL
      for (int k = 0; k < At::most_slots; ++k) terms[k] = k < slots ? from[k * At::slot] : 0.0f;
      float sum = 0;
      RNNFUSED_UNROLL
      for (int k = 0; k < At::most_slots; ++k) sum += terms[k];
      return sum;
    };

    if (begin < end) load_step(end - 1);
    sync_all<X>();

    unsigned u = 0;
    for (int position = end - 1; position >= begin; --position, ++u) {
      const int step = in.step(position), buffer = int(u % 2);
      if (u > 0) {
        if constexpr (X == Exchange::cluster) {
          mbarrier_wait(full + (u - 1) % 2, (u - 1) / 2);
          if (F != BackwardFault::no_arm && threadIdx.x == 0 && position > begin)
            mbarrier_arrive_expect_tx(full + (u - 1) % 2, sent);
        } else {
          block_sync();
        }
      }
      T* const gradients_of_step = s.gradients + (d * s.gradients_stride + Index(in.row(step)) * gate_step);
      const Shared<T> now = gradients + (F == BackwardFault::one_gradient ? 0 : buffer * At::buffer);
      RNNFUSED_UNROLL
      for (int i = 0; i < kCells; ++i) {
        const bool there = step < length[i], comes = goes_on >> i & 1;
        if (s.dy && there) dh[i] += widen(dy[i]);
        if (S > 1 && s.dcells && there) dc[i] += widen(dcells[i]);
        if (u > 0) dh[i] += received(F == BackwardFault::one_partial ? 0 : 1 - buffer, i);
        Number dacc[A] = {};
        if (there) {
          Number tape[A] = {}, before[S], after[S], dnext[S], dprev[S];
          RNNFUSED_UNROLL
          for (int a = 0; a < Cell::taped; ++a) tape[a] = widen(taped[i][a]);
          RNNFUSED_UNROLL
          for (int k = 0; k < S; ++k) {
            before[k] = !comes ? 0.0f : k == 0 ? widen(y_past[i]) : c_past[i];
            after[k] = k == 0 ? widen(y_now[i]) : c_now[i];
          }
          dnext[0] = dh[i];
          if constexpr (S > 1) dnext[1] = dc[i];
          Cell::backward(tape, before, after, dnext, dacc, dprev);
          dh[i] = comes ? plain(dprev[0]) : 0.0f;
          if constexpr (S > 1) dc[i] = comes ? plain(dprev[1]) : 0.0f;
          T* const out = gradients_of_step + ((slice + column_of(i)) * gate_step + unit);
          RNNFUSED_UNROLL
          for (int a = 0; a < A; ++a) out[a * H] = narrow<T>(plain(dacc[a]));
        }
        RNNFUSED_UNROLL
        for (int gate = 0; gate < G; ++gate) {
          now[column_of(i) * At::row + gate * At::block_units + own] =
              there && comes ? Op::round(plain(dacc[Cell::h_first + gate])) : T{};
        }
      }
      // A block that is alone has nobody to wait for: its next step's numbers are asked for as soon as there
      // is room.
      if (X == Exchange::block && position > begin) load_step(position - 1);
      if (F != BackwardFault::no_block_sync) block_sync();

      float sums[N][At::tiles][At::chains][4] = {};
      RNNFUSED_UNROLL
      for (int deep = 0; deep < At::deep; deep += 2) {
        RNNFUSED_UNROLL
        for (int n = 0; n < N; ++n) {
          uint32_t b[4];
          ldmatrix(b, now + ((n * kEight + lane % 8) * At::row + (share * At::deep + deep) * Op::depth +
                             lane / 8 * kChunk<T>));
          const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
          const typename Op::Second first_second = Op::second(low), next_second = Op::second(high);
          RNNFUSED_UNROLL
          for (int tile = 0; tile < At::tiles; ++tile) {
            w.use(tile * At::deep + deep,
                  [&](const auto& a) { Op::multiply(sums[n][tile], deep, a, first_second); });
            w.use(tile * At::deep + deep + 1,
                  [&](const auto& a) { Op::multiply(sums[n][tile], deep + 1, a, next_second); });
          }
        }
      }
      const int to_buffer = F == BackwardFault::one_partial ? 0 : buffer;
      RNNFUSED_UNROLL
      for (int tile = 0; tile < At::tiles; ++tile) {
        const int to = (first_tile + tile) * kTileRows, peer = to / At::block_units;
        if (peer >= size) continue;
        RNNFUSED_UNROLL
        for (int n = 0; n < N; ++n) {
          float sum[4];
          RNNFUSED_UNROLL
          for (int k = 0; k < 4; ++k) {
            sum[k] = sums[n][tile][0][k];
            RNNFUSED_UNROLL
            for (int chain = 1; chain < At::chains; ++chain) sum[k] += sums[n][tile][chain][k];
          }
          RNNFUSED_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int of = to % At::block_units + lane / 4 + 8 * half;
            const int place = (to_buffer * slots + rank * At::shares + share) * At::slot +
                              n * At::block_units * kEight + At::of_slot(of, lane % 4 * 2) / 2 * 2;
            const bool turned = At::of_slot(of, 0) % 2 != 0;
            const float first_sum = sum[2 * half], second_sum = sum[2 * half + 1];
            const float2 value =
                make_float2(turned ? second_sum : first_sum, turned ? first_sum : second_sum);
            if constexpr (X == Exchange::cluster) {
              st_async(remote_cast<float2>(cluster_map(partial, unsigned(peer)) + place), value,
                       cluster_map(full, unsigned(peer)) + buffer);
            } else {
              shared_cast<float2>(partial + place)[0] = value;
            }
          }
        }
      }
      if (X == Exchange::cluster && position > begin) load_step(position - 1);
    }

    if (u > 0 && F != BackwardFault::no_last_wait) {
      if constexpr (X == Exchange::cluster) {
        mbarrier_wait(full + (u - 1) % 2, (u - 1) / 2);
      } else {
        block_sync();
      }
    }
    RNNFUSED_UNROLL
    for (int i = 0; i < kCells; ++i) {
      const int b = slice + column_of(i);
      if (u > 0 && F != BackwardFault::no_last_wait)
        dh[i] += received(F == BackwardFault::one_partial ? 0 : int(u - 1) % 2, i);
      if (b >= batch || unit >= H) continue;
      const Index state = (Index(d) * batch + b) * H + unit;
      s.dh[state] = dh[i];
      if constexpr (S > 1) s.dc[state] = dc[i];
    }
    if constexpr (X == Exchange::cluster) cluster_sync();
  }
}

}  // namespace rnnfused::cuda
