// Gradients of the weights and of the input, from the gate gradients of all steps: one large product each.
// Threads share out what is written, never what is summed, and sums are cut at fixed rows: the bits do not
// depend on the threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "cpu/tile.h"

namespace rnnfused::RNNFUSED_ISA {

// What the recurrence leaves behind for one direction.
template <class Cell, class T>
struct GateGradients {
  Index units = 0, outputs = 0;
  T* gates = nullptr;   // [rows, blocks, accumulators, lanes]
  T* output = nullptr;  // gradient of a projected h, recurrence included [rows, outputs]

  GateGradients() = default;
  GateGradients(const SequenceShape& shape, Arena& arena)
      : units(padded<T>(shape.hidden)), outputs(padded<T>(shape.output)) {
    gates = arena.take<T>(shape.rows() * units * Cell::accumulators);
    if (shape.projected()) output = arena.take<T>(shape.rows() * outputs);
  }
  T* gates_of(Index row) const { return gates + row * units * Cell::accumulators; }
  T* output_of(Index row) const { return output + row * outputs; }
};

// Rows of the left operand that an outer-product tile holds, and vectors of the right.
template <class T>
constexpr Index kOuterRows = kLanes<T> < 4 ? kLanes<T> : 4;
template <class T>
constexpr Index kOuterWidth = kAccumulators / kOuterRows<T> < 6 ? kAccumulators / kOuterRows<T> : 6;
// Rows of the sequence summed in registers, and rows whose sum is added to the result.
constexpr Index kOuterChain = 64, kOuterDepth = 256;
constexpr Index kOuterVectors = 12;  // of the left operand, for which packed operands stay in cache

// acc[r][j] = sum_k a[k][r] b[k][j], in chains like those of tile(). a holds a vector of every k.
template <class T, int W>
void outer_tile(Index depth, const T* a, const T* b, T* acc) {
  using V = Native<T>;
  constexpr Index L = kLanes<T>, R = kOuterRows<T>;
  for (Index from = 0; from == 0 || from < depth; from += kOuterChain) {
    V sum[R][W] = {};
    const Index end = depth - from < kOuterChain ? depth : from + kOuterChain;
    for (Index k = from; k < end; ++k) {
      V right[W];
      for (int j = 0; j < W; ++j) right[j] = load<V>(b + (k * W + j) * L);
      for (int r = 0; r < R; ++r) {
        const V left = broadcast<V>(a[k * L + r]);
        for (int j = 0; j < W; ++j) sum[r][j] = fma(left, right[j], sum[r][j]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < W; ++j) {
        T* at = acc + (r * W + j) * L;
        store(at, from == 0 ? sum[r][j] : load<V>(at) + sum[r][j]);
      }
    }
  }
}

template <class T>
RNNFUSED_HD void outer_tile_of(Index width, Index depth, const T* a, const T* b, T* acc) {
  switch (width) {
    case 1:
      return outer_tile<T, 1>(depth, a, b, acc);
    case 2:
      return outer_tile<T, 2>(depth, a, b, acc);
    case 3:
      return outer_tile<T, 3>(depth, a, b, acc);
    default:
      if constexpr (kOuterWidth<T> > 3) {
        if (width == 4) return outer_tile<T, 4>(depth, a, b, acc);
        if (width == 5) return outer_tile<T, 5>(depth, a, b, acc);
        return outer_tile<T, 6>(depth, a, b, acc);
      }
  }
}

template <class Cell, class T>
class ParameterGradients {
  using V = Native<T>;
  static constexpr Index L = kLanes<T>, R = kOuterRows<T>;
  static constexpr Index A = Cell::accumulators, G = Cell::gates;

 public:
  ParameterGradients(const BackwardArgs<T>& args, const GateGradients<Cell, T>& from, int thread, int threads,
                     Arena& arena)
      : args_(args),
        from_(from),
        stream_{args.shape, 0, args.shape.batch},
        thread_(thread),
        threads_(threads) {
    const SequenceShape& shape = args.shape;
    Index columns = padded<T>(shape.input) + padded<T>(shape.output);
    if (shape.projected() && from.units > columns) columns = from.units;
    if (args.dx.data) input_panels_ = arena.take<T>(padded<T>(shape.input) * from.units * G);
    before_ = arena.take<Index>(shape.rows());
    for (int t = 0; t < threads; ++t) {
      T* right = arena.take<T>(kOuterDepth * columns);
      T* left = arena.take<T>(kOuterDepth * kOuterVectors * L);
      T* partial = arena.take<T>(kInputRows * kInputGroup * L);
      T* sums = arena.take<T>(2 * share(blocks_of<T>(shape.hidden), threads, t).size() * A * L);
      if (t == thread) right_ = right, left_ = left, partial_ = partial, sums_ = sums;
    }
    zeros_ = arena.take<T>(from.units);
  }

  void run(Barrier& all) {
    if (thread_ == 0) find_previous();
    if (args_.dx.data) pack_input_panels();
    all.wait();
    if (args_.dinput || args_.drecurrent) weight_gradients();
    if (args_.dinput_bias || args_.dbias) sum_biases();
    if (args_.dprojection) projection_gradient();
    if (args_.dx.data) input_gradient();
  }

 private:
  static constexpr Index kInputGroup = 4;  // vectors of a row of dx
  static constexpr Index kInputRows = 96;  // rows of dx between which a packed panel stays in cache

  // For every row the row before it in processing order, or -1 - b where batch row b starts.
  void find_previous() {
    for (Index s = 0; s < args_.shape.steps; ++s) {
      for (Index b = 0; b < stream_.active(s); ++b) {
        const Index before = stream_.previous(s, b);
        before_[stream_.row(s, b)] = before >= 0 ? before : -1 - b;
      }
    }
    for (Index u = 0; u < from_.units; ++u) zeros_[u] = 0;
  }

  const T* previous_output(Index row) const {
    const Index before = before_[row];
    if (before >= 0) return args_.y[before];
    return args_.initial[0].data ? args_.initial[0][-1 - before] : zeros_;
  }

  // A product that the left operand enters: its vectors from accumulator `feeds` on, `gates` of every block,
  // are rows of `out` [gates * units, columns].
  template <class RightOf>
  struct Target {
    int feeds, gates;
    const int* gate_of;
    Index units, columns;
    T* out;
    RightOf right;  // row of the sequence -> row of the right operand
    T* panels;
  };
  template <class RightOf>
  Target(int, int, const int*, Index, Index, T*, RightOf, T*) -> Target<RightOf>;

  // For every target, out = sum over all rows of left(row)[.] right(row)[.]. The left operand's rows are
  // `blocks` blocks of `accumulators` vectors; whatever the targets, they are packed once.
  template <class LeftOf, class... RightOf>
  RNNFUSED_HD void outer(Index blocks, Index accumulators, LeftOf left, Target<RightOf>... targets) {
    const Range mine = share(blocks, threads_, thread_);
    const Index all = args_.shape.rows();
    const Index per_pass = kOuterVectors / accumulators;
    (clear(mine, targets), ...);
    for (Index k = 0; k < all; k += kOuterDepth) {
      const Index depth = all - k < kOuterDepth ? all - k : kOuterDepth;
      (pack_right(k, depth, targets), ...);
      for (Index first = mine.first; first < mine.last; first += per_pass) {
        const Range pass{first, mine.last - first < per_pass ? mine.last : first + per_pass};
        for (Index i = 0; i < depth; ++i) {
          const T* row = left(k + i) + first * accumulators * L;
          for (Index v = 0; v < pass.size() * accumulators; ++v)
            store(left_ + (v * kOuterDepth + i) * L, load<V>(row + v * L));
        }
        (multiply(pass, accumulators, depth, targets), ...);
      }
    }
  }

  // An even split, as in product().
  static RNNFUSED_HD Index panels_of(Index columns) {
    return (blocks_of<T>(columns) + kOuterWidth<T> - 1) / kOuterWidth<T>;
  }

  template <class Body>
  static RNNFUSED_HD void for_panels(Index columns, Body body) {
    const Index panels = panels_of(columns);
    for (Index p = 0; p < panels; ++p) body(share(blocks_of<T>(columns), int(panels), int(p)));
  }

  template <class RightOf>
  void clear(Range mine, const Target<RightOf>& target) const {
    if (!target.out) return;
    for (Index block = mine.first; block < mine.last; ++block) {
      for (int g = 0; g < target.gates; ++g) {
        const Index row = target.gate_of[target.feeds + g] * target.units + block * L;
        memset(target.out + row * target.columns, 0,
               size_t(lanes_in<T>(block, target.units) * target.columns) * sizeof(T));
      }
    }
  }

  template <class RightOf>
  RNNFUSED_HD void pack_right(Index k, Index depth, const Target<RightOf>& target) const {
    if (!target.out) return;
    for (Index i = 0; i < depth; ++i) {
      const T* row = target.right(k + i);
      for_panels(target.columns, [&](Range v) {
        pack_row(row, target.columns, v.first, v.size(),
                 target.panels + (v.first * kOuterDepth + i * v.size()) * L);
      });
    }
  }

  template <class RightOf>
  RNNFUSED_HD void multiply(Range blocks, Index accumulators, Index depth,
                            const Target<RightOf>& target) const {
    if (!target.out) return;
    for_panels(target.columns, [&](Range v) {
      const T* panel = target.panels + v.first * L * kOuterDepth;
      for (Index block = blocks.first; block < blocks.last; ++block) {
        const Index lanes = lanes_in<T>(block, target.units);
        for (int g = 0; g < target.gates; ++g) {
          const Index vector = (block - blocks.first) * accumulators + target.feeds + g;
          const Index row = target.gate_of[target.feeds + g] * target.units + block * L;
          for (Index lane = 0; lane < lanes; lane += R) {
            alignas(64) T acc[R * kOuterWidth<T> * L];
            outer_tile_of(v.size(), depth, left_ + vector * kOuterDepth * L + lane, panel, acc);
            add_tile(acc, lanes - lane < R ? lanes - lane : R, v, target.columns,
                     target.out + (row + lane) * target.columns);
          }
        }
      }
    });
  }

  static RNNFUSED_HD void add_tile(const T* acc, Index rows, Range vectors, Index columns, T* out) {
    for (Index r = 0; r < rows; ++r, out += columns) {
      for (Index v = vectors.first; v < vectors.last; ++v, acc += L) {
        const Index lanes = lanes_in<T>(v, columns);
        store(out + v * L, load<V>(out + v * L, lanes) + load<V>(acc), lanes);
      }
    }
  }

  void weight_gradients() {
    const SequenceShape& shape = args_.shape;
    outer(
        blocks_of<T>(shape.hidden), A, [&](Index row) { return from_.gates_of(row); },
        Target{Cell::x_first, int(G), Cell::gate_of, shape.hidden, shape.input, args_.dinput,
               [this](Index row) -> const T* { return args_.x[row]; }, right_},
        Target{Cell::h_first, int(G), Cell::gate_of, shape.hidden, shape.output, args_.drecurrent,
               [this](Index row) { return previous_output(row); },
               right_ + padded<T>(shape.input) * kOuterDepth});
  }

  void projection_gradient() {
    const SequenceShape& shape = args_.shape;
    const Tape<Cell, T> tape(shape, const_cast<T*>(args_.tape));
    static constexpr int only[] = {0};
    outer(
        blocks_of<T>(shape.output), 1, [&](Index row) { return from_.output_of(row); },
        Target{0, 1, only, shape.output, shape.hidden, args_.dprojection,
               [tape](Index row) -> const T* { return tape.unprojected_of(row); }, right_});
  }

  // Both biases' gradients are sums of the same gate gradients over all rows. They cancel, so the rounding
  // errors of the sum are summed beside it (Knuth's TwoSum).
  void sum_biases() {
    const Index H = args_.shape.hidden, all = args_.shape.rows();
    const Range mine = share(blocks_of<T>(H), threads_, thread_);
    const Index first = mine.first * A, vectors = mine.size() * A;
    memset(sums_, 0, size_t(2 * vectors * L) * sizeof(T));
    for (Index row = 0; row < all; ++row) {
      const T* gates = from_.gates_of(row) + first * L;
      for (Index v = 0; v < vectors; ++v) {
        T *total = sums_ + 2 * v * L, *lost = total + L;
        const V x = load<V>(gates + v * L), before = load<V>(total);
        const V sum = before + x, part = sum - before;
        store(lost, load<V>(lost) + ((before - (sum - part)) + (x - part)));
        store(total, sum);
      }
    }
    for (Index block = mine.first; block < mine.last; ++block) {
      store_bias(Cell::x_first, block, sums_ + (block * A - first) * 2 * L, args_.dinput_bias);
      store_bias(Cell::h_first, block, sums_ + (block * A - first) * 2 * L, args_.dbias);
    }
  }

  void store_bias(Index feeds, Index block, const T* sums, T* out) const {
    if (!out) return;
    const Index H = args_.shape.hidden;
    for (Index a = feeds; a < feeds + G; ++a) {
      const V total = load<V>(sums + 2 * a * L) + load<V>(sums + (2 * a + 1) * L);
      store(out + Cell::gate_of[a] * H + block * L, total, lanes_in<T>(block, H));
    }
  }

  T* input_panel(Index block) const { return input_panels_ + block * L * from_.units * G; }

  void pack_input_panels() {
    const Index blocks = blocks_of<T>(args_.shape.input);
    const Range mine = share((blocks + kInputGroup - 1) / kInputGroup, threads_, thread_);
    for (Index group = mine.first; group < mine.last; ++group) {
      const Index first = group * kInputGroup,
                  n = blocks - first < kInputGroup ? blocks - first : kInputGroup;
      pack_gates_transposed<Cell>(args_.weights.input, args_.shape.hidden, args_.shape.input, Cell::x_first,
                                  first, n, input_panel(first));
    }
  }

  void input_gradient() {
    const Index I = args_.shape.input, blocks = blocks_of<T>(I);
    const Range mine = share(args_.shape.rows(), threads_, thread_);
    const Runs runs = G == A ? Runs{1, from_.units * G, 0} : Runs{from_.units / L, G * L, A * L};
    for (Index row = mine.first; row < mine.last; row += kInputRows) {
      const Index rows = mine.last - row < kInputRows ? mine.last - row : kInputRows;
      for (Index first = 0; first < blocks; first += kInputGroup) {
        const Index n = blocks - first < kInputGroup ? blocks - first : kInputGroup;
        product(
            rows, runs, int(n), input_panel(first), partial_,
            [&](Index i) -> const T* { return from_.gates_of(row + i) + Cell::x_first * L; },
            [&](Index i, T* acc) {
              if (!args_.accumulate_dx) return (void)memset(acc, 0, size_t(n * L) * sizeof(T));
              for (Index j = 0; j < n; ++j) {
                store(acc + j * L, load<V>(args_.dx[row + i] + (first + j) * L, lanes_in<T>(first + j, I)));
              }
            },
            [&](Index i, const T* acc) {
              for (Index j = 0; j < n; ++j) {
                store(args_.dx[row + i] + (first + j) * L, load<V>(acc + j * L), lanes_in<T>(first + j, I));
              }
            });
      }
    }
  }

  const BackwardArgs<T>& args_;
  const GateGradients<Cell, T>& from_;
  Stream stream_;
  int thread_, threads_;
  T *input_panels_ = nullptr, *zeros_ = nullptr;  // shared by the threads
  Index* before_ = nullptr;                       // [rows]
  T *right_ = nullptr, *left_ = nullptr, *partial_ = nullptr, *sums_ = nullptr;
};

}  // namespace rnnfused::RNNFUSED_ISA
