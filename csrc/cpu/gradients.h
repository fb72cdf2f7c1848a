// Gradients of the weights and of the input, from the gate gradients of a chunk of steps: one large product
// each. Threads share out what is written, never what is summed, and sums are cut at fixed rows: the bits do
// not depend on the threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/tape.h"
#include "cpu/tile.h"
#include "cpu/varied.h"

namespace rnnfused::RNNFUSED_ISA {

// Rows that a chunk of steps holds at most (unless one step alone holds more). Enough for the products to run
// at full rate, few enough that their gate gradients are still in cache when the products read them.
constexpr Index kGradientRows = kRowsSummedAtOnce;

// Backward goes through the positions in chunks of whole steps, last first: this is the one that ends before
// `last`. Chunks follow from the shape alone, so that sums are cut alike under every plan.
RNNFUSED_HD Range chunk_before(const SequenceShape& shape, Index last) {
  const Stream stream(shape);
  if (last == 0) return {0, 0};
  Index first = last - 1, rows = stream.active(first);
  while (first > 0 && rows + stream.active(first - 1) <= kGradientRows) rows += stream.active(--first);
  return {first, last};
}

template <class Body>
RNNFUSED_HD void for_chunks(const SequenceShape& shape, Body body) {
  Index last = shape.steps;
  do {
    const Range positions = chunk_before(shape, last);
    body(positions);
    last = positions.first;
  } while (last > 0);
}

// What the recurrence leaves behind for one direction: all rows, or a ring that holds those of a chunk, or of
// two if gates are rebuilt there, and of the step beside them. As products read them, which is all that is
// done with them: they are rounded only where products take them rounded.
template <class Cell, class S>
struct GateGradients {
  using O = Operand<S>;
  Index units = 0, outputs = 0;
  Index slots = 0, origin = 0;  // of the ring, and a row in its first slot
  O* gates = nullptr;           // [slots, blocks, accumulators, lanes]
  O* output = nullptr;          // gradient of a projected h, recurrence included [slots, outputs]

  GateGradients() = default;
  GateGradients(const SequenceShape& shape, bool all_rows, bool rebuilt, Arena& arena)
      : units(padded<Compute<S>>(shape.hidden)),
        outputs(padded<Compute<S>>(shape.output)),
        slots(shape.rows()) {
    const Index chunk = shape.batch > kGradientRows ? shape.batch : kGradientRows;
    const Index ring = (rebuilt ? 2 : 1) * chunk + shape.batch;
    if (!all_rows && ring < slots) slots = ring;
    gates = arena.take<O>(slots * units * Cell::accumulators);
    if (projects<Cell>(shape)) output = arena.take<O>(slots * outputs);
  }
  // From now on these rows are asked for, and no others but of the chunk and of the step beside them.
  void enter(Range rows) { origin = slots ? rows.first - rows.first % slots : 0; }

  O* gates_of(Index row) const { return gates + slot_of(row) * units * Cell::accumulators; }
  O* output_of(Index row) const { return output + slot_of(row) * outputs; }

 private:
  Index slot_of(Index row) const {
    const Index slot = row - origin;
    return slot < 0 ? slot + slots : slot < slots ? slot : slot - slots;
  }
};

// What each row of one direction comes from: the row before it in processing order, or the initial states.
template <class Cell, class S>
class History {
  using T = Compute<S>;

 public:
  History() = default;
  History(const BackwardArgs<S>& args, Arena& arena)
      : args_(&args), cell_(tape_of<Cell>(args).cell), units_(padded<T>(args.shape.hidden)) {
    before_ = arena.take<Index>(args.shape.rows());
    most_units_ = padded<T>(args.shape.output > args.shape.hidden ? args.shape.output : args.shape.hidden);
    zeros_ = arena.take<S>(most_units_);
    if constexpr (kStaged<Cell>) {
      if (!args.variation->drops()) return;
      operand_ = VariedTape<T>(*args.variation, args.shape.rows(), const_cast<T*>(cell_)).operand;
      rounded_[0] = arena.take<S>(args.shape.batch * most_units_);
    }
    if (!kNarrow<S>) return;
    for (int state = 0; state < Cell::states; ++state) {
      if (args.initial[state].data) rounded_[state] = arena.take<S>(args.shape.batch * most_units_);
    }
  }

  // One thread does it; all meet after it.
  void find() {
    const SequenceShape& shape = args_->shape;
    const Stream stream(shape);
    for (Index s = 0; s < shape.steps; ++s) {
      for (Index b = 0; b < stream.active(s); ++b) {
        const Index before = stream.previous(s, b);
        before_[stream.row(s, b)] = before >= 0 ? before : -1 - b;
      }
    }
    memset(zeros_, 0, size_t(most_units_) * sizeof(S));
    if constexpr (kStaged<Cell>) {
      for (Index b = 0; operand_ && b < shape.batch; ++b) drop_initial(stream, b);
      return;
    }
    for (int state = 0; state < Cell::states; ++state) {
      for (Index b = 0; rounded_[state] && b < shape.batch; ++b)
        round(state == 0 ? shape.output : shape.hidden, args_->initial[state].find(b), start(state, b));
    }
  }

  // As the product reads it.
  const S* output(Index row) const {
    const Index before = before_[row];
    if constexpr (kStaged<Cell>) {
      if (operand_)
        return before >= 0 ? operand_ + before * args_->variation->unit_scalars : start(0, -1 - before);
    }
    return before >= 0 ? args_->y[before] : initial(0, -1 - before);
  }
  const S* cell(Index row) const {
    const Index before = before_[row];
    return before >= 0 ? cell_ + before * units_ : initial(1, -1 - before);
  }

 private:
  // An initial h after recurrent dropout.
  void drop_initial(const Stream& stream, Index b) const {
    using V = Native<T>;
    const Index units = args_->variation->unit_scalars;
    const T* const from = args_->initial[0].find(b);
    draw_factors(*args_->variation, stream, b, Range{0, units / kLanes<T>}, start(0, b));
    for (Index u = 0; u < units; u += kLanes<T>) {
      const V h = from ? load<V>(from + u, args_->shape.output - u) : V{};
      store(start(0, b) + u, load<V>(start(0, b) + u) * h);
    }
  }

  S* start(int state, Index b) const { return rounded_[state] + b * most_units_; }

  static void round(Index units, const T* from, S* to) {
    using V = Native<T>;
    for (Index u = 0; u < units; u += kLanes<T>)
      store(to + u, from ? load<V>(from + u, units - u) : V{}, units - u);
  }

  const S* initial(int state, Index b) const {
    if constexpr (kNarrow<S>) {
      return rounded_[state] ? start(state, b) : zeros_;
    } else {
      const T* found = args_->initial[state].find(b);
      return found ? found : zeros_;
    }
  }

  const BackwardArgs<S>* args_ = nullptr;
  const S* cell_ = nullptr;           // of the tape
  Index units_ = 0, most_units_ = 0;  // of a cell, of any state
  Index* before_ = nullptr;           // [rows]: a row, or -1 - b where batch row b starts
  S* zeros_ = nullptr;
  const S* operand_ = nullptr;   // h of every row after recurrent dropout [rows, units], where there is any
  S* rounded_[kMaxStates] = {};  // initial states [batch, most units] of narrow numbers, or null
};

// Rows of the left operand that an outer-product tile holds, by the vectors of the right: few vectors need
// many rows, or the tile would wait for its own sums.
template <class T>
constexpr Index outer_rows(Index width) {
  if (kLanes<T> >= 8 && 8 * width <= kAccumulators) return 8;
  return kLanes<T> < 4 ? kLanes<T> : 4;
}
template <class T>
constexpr Index kOuterWidth =
    kAccumulators / outer_rows<T>(kAccumulators) < 6 ? kAccumulators / outer_rows<T>(kAccumulators) : 6;
// Rows of the sequence summed in registers, and rows whose sum is added to the result.
constexpr Index kOuterChain = 64, kOuterDepth = kRowsSummedAtOnce;
constexpr Index kOuterVectors = 12;  // of the left operand, for which packed operands stay in cache
// Columns of a right operand so narrow that it takes the left one's place: a vector of it would be mostly
// empty.
template <class T>
constexpr Index kNarrowColumns = kLanes<T> / 2;

// acc[r][j] = sum_k a[k][r] b[k][j], in chains like those of tile(). a holds a vector of every k. `entries`
// are terms, or pairs of them where terms go in pairs.
template <class S, int W, Index R = outer_rows<Compute<S>>(W)>
void outer_tile(Index entries, const Operand<S>* a, const Operand<S>* b, Compute<S>* acc) {
  using V = Native<Compute<S>>;
  constexpr Index L = kLanes<Compute<S>>, P = kTerms<S>, chain = kOuterChain / P;
  for (Index from = 0; from == 0 || from < entries; from += chain) {
    V sum[R][W] = {};
    const Index end = entries - from < chain ? entries : from + chain;
    for (Index k = from; k < end; ++k) {
      Terms<S> right[W];
      for (int j = 0; j < W; ++j) right[j] = load_terms<S>(b + (k * W + j) * L * P);
      for (int r = 0; r < R; ++r) {
        const Terms<S> left = broadcast_terms<S>(a + (k * L + r) * P);
        for (int j = 0; j < W; ++j) sum[r][j] = add_product<S>(left, right[j], sum[r][j]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < W; ++j) {
        Compute<S>* at = acc + (r * W + j) * L;
        store(at, from == 0 ? sum[r][j] : load<V>(at) + sum[r][j]);
      }
    }
  }
}

template <class S>
RNNFUSED_HD void outer_tile_of(Index width, Index entries, const Operand<S>* a, const Operand<S>* b,
                               Compute<S>* acc) {
  switch (width) {
    case 1:
      return outer_tile<S, 1>(entries, a, b, acc);
    case 2:
      return outer_tile<S, 2>(entries, a, b, acc);
    case 3:
      return outer_tile<S, 3>(entries, a, b, acc);
    default:
      if constexpr (kOuterWidth<Compute<S>> > 3) {
        if (width == 4) return outer_tile<S, 4>(entries, a, b, acc);
        if (width == 5) return outer_tile<S, 5>(entries, a, b, acc);
        return outer_tile<S, 6>(entries, a, b, acc);
      }
  }
}

template <class Cell, class S>
class ParameterGradients {
  using T = Compute<S>;
  using O = Operand<S>;
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  static constexpr Index A = Cell::accumulators, G = Cell::gates, P = kTerms<S>;

 public:
  ParameterGradients(const BackwardArgs<S>& args, const GateGradients<Cell, S>& from,
                     const History<Cell, S>& history, int thread, int threads, Arena& arena)
      : args_(args),
        from_(from),
        history_(history),
        heads_(args.variation, args.shape.output),
        thread_(thread),
        threads_(threads) {
    const SequenceShape& shape = args.shape;
    const Index of_input = padded<T>(shape.input), of_output = padded<T>(shape.output);
    in_one_sweep_ = kOuterDepth * (of_input + of_output) * Index(sizeof(O)) <= kSweepBytes;
    Index columns = in_one_sweep_ ? of_input + of_output : of_input > of_output ? of_input : of_output;
    if (projects<Cell>(shape) && from.units > columns) columns = from.units;
    const Index right_scalars = kOuterDepth * columns;
    shares_right_ = threads * right_scalars * Index(sizeof(O)) > kOwnRightBytes;
    for (int copy = 0; copy < (shares_right_ ? 1 : threads); ++copy) {
      O* right = arena.take<O>(right_scalars);
      if (shares_right_ || copy == thread) right_ = right;
    }
    for (int t = 0; t < threads; ++t) {
      const Index outer_scalars = kOuterDepth * kOuterVectors * L;
      const Index panel_scalars = args.dx.data ? kInputGroup * L * from.units * G : 0;
      O* own = arena.take<O>(outer_scalars > panel_scalars ? outer_scalars : panel_scalars);
      T* partial = arena.take<T>(kInputRows * kInputGroup * L);
      T* sums = arena.take<T>(2 * share(blocks_of<T>(shape.hidden), threads, t).size() * A * L);
      if (t == thread) left_ = input_panel_ = own, partial_ = partial, sums_ = sums;
    }
  }

  void prepare() {
    const Range mine = share(blocks_of<T>(args_.shape.hidden), threads_, thread_);
    memset(sums_, 0, size_t(2 * mine.size() * A * L) * sizeof(T));
  }

  // What the positions of a chunk contribute. Its gate gradients are there; chunks come last first.
  void add(Range positions, Barrier& all) {
    const Chunk chunk{rows_of(args_.shape, positions), positions.last == args_.shape.steps};
    if (args_.dinput || args_.drecurrent) weight_gradients(chunk, all);
    if (args_.dinput_bias || args_.dbias) sum_biases(chunk.rows);
    if (args_.dprojection) projection_gradient(chunk, all);
    if (args_.dx.data) input_gradient(chunk.rows);
  }

  void finish() const {
    const Range mine = share(blocks_of<T>(args_.shape.hidden), threads_, thread_);
    for (Index block = mine.first; block < mine.last; ++block) {
      const T* sums = sums_ + (block - mine.first) * 2 * A * L;
      store_bias(Cell::x_first, block, sums, args_.dinput_bias);
      store_bias(Cell::h_first, block, sums, args_.dbias);
    }
  }

 private:
  static constexpr Index kInputGroup = 4;   // vectors of a row of dx
  static constexpr Index kInputRows = 256;  // rows of dx summed at once, where the panel is cut

  // Of the packed right operands of all threads. Below it each packs its own, which costs less than to read
  // what another core has written, most of all where the cores share no cache.
  static constexpr Index kOwnRightBytes = 1 << 20;

  // Of the right operands of dW_ih and dW_hh. Below it the gate gradients are packed once for both; above it
  // packing them again costs less than the memory for both is worth.
  static constexpr Index kSweepBytes = 256 << 10;

  struct Chunk {
    Range rows;
    bool first;  // of those that are summed
  };

  // A product that the left operand enters: its vectors from accumulator `feeds` on, `gates` of every block,
  // are rows of `out` [gates * units, columns].
  template <class RightOf>
  struct Target {
    int feeds, gates;
    const int* gate_of;
    Index units, columns;
    MatrixGradient<S> out;
    RightOf right;  // row of the sequence -> row of the right operand
    O* panels;
    bool by_head = false;  // whether a unit's row is zero beyond its head's columns
  };
  template <class RightOf>
  Target(int, int, const int*, Index, Index, MatrixGradient<S>, RightOf, O*, bool = false) -> Target<RightOf>;

  static RNNFUSED_HD Index entries_of(Index depth) { return (depth + P - 1) / P; }

  // For every target, out += sum over the chunk's rows of left(row)[.] right(row)[.]. The left operand's rows
  // are blocks of `accumulators` vectors, of which some count; whatever the targets, they are packed once.
  template <class LeftOf, class... RightOf>
  RNNFUSED_HD void outer(const Chunk& chunk, Barrier& all, Range blocks, Index accumulators, LeftOf left,
                         Target<RightOf>... targets) {
    const Range part = share(blocks.size(), threads_, thread_);
    const Range mine{blocks.first + part.first, blocks.first + part.last};
    const Index per_pass = kOuterVectors / accumulators;
    if (chunk.first) (clear(mine, targets, chunk.rows.size() == 0), ...);
    for (Index k = chunk.rows.first; k < chunk.rows.last; k += kOuterDepth) {
      const Index depth = chunk.rows.last - k < kOuterDepth ? chunk.rows.last - k : kOuterDepth;
      if (shares_right_) {
        all.wait();  // the packed rows before are done with
        (pack_right(k, depth, share(entries_of(depth), threads_, thread_), targets), ...);
        all.wait();
      } else {
        (pack_right(k, depth, Range{0, entries_of(depth)}, targets), ...);
      }
      for (Index first = mine.first; first < mine.last; first += per_pass) {
        const Range pass{first, mine.last - first < per_pass ? mine.last : first + per_pass};
        for (Index i = 0; i < depth; i += P) {
          const O* row = left(k + i) + first * accumulators * L;
          const O* next = P > 1 && i + 1 < depth ? left(k + i + 1) + first * accumulators * L : nullptr;
          for (Index v = 0; v < pass.size() * accumulators; ++v) {
            store_terms<S>(left_ + (v * kOuterDepth + i) * L,
                           join_rows(row + v * L, next ? next + v * L : nullptr, L));
          }
        }
        const bool starts = chunk.first && k == chunk.rows.first;
        (targets.out.visit([&](auto* out) { multiply(pass, accumulators, depth, targets, starts, out); }),
         ...);
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

  // Whether columns of W_hh, in vectors, are some of the head's that a block of units belongs to.
  bool joins(Index block, Range columns) const {
    const Range terms = heads_.terms(block);
    return columns.first * L < terms.last && terms.first < columns.last * L;
  }

  template <class RightOf>
  void clear(Range mine, const Target<RightOf>& target, bool nothing_follows) const {
    // Otherwise every sum is stored where it starts.
    if (!target.by_head && !nothing_follows) return;
    target.out.visit([&](auto* out) {
      for (Index block = mine.first; block < mine.last; ++block) {
        for (int g = 0; g < target.gates; ++g) {
          const Index row = target.gate_of[target.feeds + g] * target.units + block * L;
          memset(out + row * target.columns, 0,
                 size_t(lanes_in<T>(block, target.units) * target.columns) * sizeof *out);
        }
      }
    });
  }

  template <class RightOf>
  RNNFUSED_HD void pack_right(Index k, Index depth, Range mine, const Target<RightOf>& target) const {
    if (!target.out) return;
    for (Index i = mine.first * P; i < mine.last * P; i += P) {
      const S* row = target.right(k + i);
      const S* next = P > 1 && i + 1 < depth ? target.right(k + i + 1) : nullptr;
      for_panels(target.columns, [&](Range v) {
        pack_row(row, next, target.columns, v.first, v.size(),
                 target.panels + (v.first * kOuterDepth + i * v.size()) * L);
      });
    }
  }

  template <class RightOf, class Out>
  RNNFUSED_HD void multiply(Range blocks, Index accumulators, Index depth, const Target<RightOf>& target,
                            bool starts, Out* gradient) const {
    const bool stores = starts && !target.by_head;
    if constexpr (kNarrowColumns<T> > 0) {
      constexpr Index most = kNarrowColumns<T>, few = most < 4 ? most : 4;
      if (target.columns <= few)
        return multiply_narrow<few>(blocks, accumulators, depth, target, stores, gradient);
      if (target.columns <= most)
        return multiply_narrow<most>(blocks, accumulators, depth, target, stores, gradient);
    }
    for_panels(target.columns, [&](Range v) {
      const O* panel = target.panels + v.first * L * kOuterDepth;
      const Index R = outer_rows<T>(v.size());
      for (Index block = blocks.first; block < blocks.last; ++block) {
        if (target.by_head && !joins(block, v)) continue;
        const Index lanes = lanes_in<T>(block, target.units);
        for (int g = 0; g < target.gates; ++g) {
          const Index vector = (block - blocks.first) * accumulators + target.feeds + g;
          const Index row = target.gate_of[target.feeds + g] * target.units + block * L;
          for (Index lane = 0; lane < lanes; lane += R) {
            alignas(64) T acc[kAccumulators * L];
            Out* const out = gradient + (row + lane) * target.columns;
            const Index rows = lanes - lane < R ? lanes - lane : R;
            // The sums so far are far away by now; they come while the tile is summed.
            for (Index r = 0; r < rows; ++r) {
              for (Index j = v.first; j < v.last; ++j)
                __builtin_prefetch(out + r * target.columns + j * L, 1);
            }
            outer_tile_of<S>(v.size(), entries_of(depth), left_ + vector * kOuterDepth * L + lane * P, panel,
                             acc);
            add_tile(acc, rows, v, target.columns, out, stores);
          }
        }
      }
    });
  }

  // The same sums, a vector of gates at a time.
  template <Index C, class RightOf, class Out>
  RNNFUSED_HD void multiply_narrow(Range blocks, Index accumulators, Index depth,
                                   const Target<RightOf>& target, bool stores, Out* gradient) const {
    for (Index block = blocks.first; block < blocks.last; ++block) {
      const Index lanes = lanes_in<T>(block, target.units);
      for (int g = 0; g < target.gates; ++g) {
        const Index vector = (block - blocks.first) * accumulators + target.feeds + g;
        Out* const out =
            gradient + (target.gate_of[target.feeds + g] * target.units + block * L) * target.columns;
        alignas(64) T acc[C * L];
        outer_tile<S, 1, C>(entries_of(depth), target.panels, left_ + vector * kOuterDepth * L, acc);
        for (Index lane = 0; lane < lanes; ++lane) {
          for (Index c = 0; c < target.columns; ++c) {
            Out* const at = out + lane * target.columns + c;
            const T sum = acc[c * L + lane];
            if constexpr (std::is_same_v<Out, T>) {
              *at = stores ? sum : *at + sum;
            } else {
              store(at, broadcast<V>(sum), 1);
            }
          }
        }
      }
    }
  }

  // Or stores it, where there is nothing yet.
  template <class Out>
  static RNNFUSED_HD void add_tile(const T* acc, Index rows, Range vectors, Index columns, Out* out,
                                   bool stores) {
    for (Index r = 0; r < rows; ++r, out += columns) {
      for (Index v = vectors.first; v < vectors.last; ++v, acc += L) {
        const Index lanes = lanes_in<T>(v, columns);
        const V sum = stores ? load<V>(acc) : load<V>(out + v * L, lanes) + load<V>(acc);
        store(out + v * L, sum, lanes);
      }
    }
  }

  void weight_gradients(const Chunk& chunk, Barrier& all) {
    const SequenceShape& shape = args_.shape;
    const auto sweep_some = [&](Range blocks, auto... targets) {
      outer(chunk, all, blocks, A, [&](Index row) { return from_.gates_of(row); }, targets...);
    };
    const Range blocks{0, blocks_of<T>(shape.hidden)};
    const auto sweep = [&](auto... targets) { sweep_some(blocks, targets...); };
    const Target input{Cell::x_first,
                       int(G),
                       Cell::gate_of,
                       shape.hidden,
                       shape.input,
                       args_.dinput,
                       [this](Index row) -> const S* { return args_.x[row]; },
                       right_};
    const Target recurrent{Cell::h_first,
                           int(G),
                           Cell::gate_of,
                           shape.hidden,
                           shape.output,
                           args_.drecurrent,
                           [this](Index row) { return history_.output(row); },
                           in_one_sweep_ ? right_ + padded<T>(shape.input) * kOuterDepth : right_,
                           heads_.several()};
    if constexpr (kStaged<Cell>) {
      if (args_.variation->resets()) {
        // What the last gate's product read is not what the others' did.
        const Index units = args_.variation->unit_scalars, late = blocks.last - units / L;
        const T* const operand =
            VariedTape<T>(*args_.variation, shape.rows(), const_cast<T*>(tape_of<Cell>(args_).cell)).reset;
        if (input.out) sweep(input);
        if (!recurrent.out) return;
        sweep_some(Range{0, late}, recurrent);
        return sweep_some(
            Range{late, blocks.last},
            Target{Cell::h_first, int(G), Cell::gate_of, shape.hidden, shape.output, args_.drecurrent,
                   [=](Index row) -> const S* { return operand + row * units; }, right_, heads_.several()});
      }
    }
    if (in_one_sweep_) return sweep(input, recurrent);
    if (input.out) sweep(input);
    if (recurrent.out) sweep(recurrent);
  }

  void projection_gradient(const Chunk& chunk, Barrier& all) {
    const SequenceShape& shape = args_.shape;
    const auto tape = tape_of<Cell>(args_);
    static constexpr int only[] = {0};
    outer(
        chunk, all, Range{0, blocks_of<T>(shape.output)}, 1, [&](Index row) { return from_.output_of(row); },
        Target{0, 1, only, shape.output, shape.hidden, args_.dprojection,
               [tape](Index row) -> const S* { return tape.unprojected_of(row); }, right_});
  }

  // Both biases' gradients are sums of the same gate gradients over all rows. They cancel, so the rounding
  // errors of the sum are summed beside it (Knuth's TwoSum).
  void sum_biases(Range rows) {
    const Range mine = share(blocks_of<T>(args_.shape.hidden), threads_, thread_);
    const Index first = mine.first * A, vectors = mine.size() * A;
    for (Index row = rows.first; row < rows.last; ++row) {
      const O* gates = from_.gates_of(row) + first * L;
      for (Index v = 0; v < vectors; ++v) {
        T *total = sums_ + 2 * v * L, *lost = total + L;
        ExactSum<V> sum{load<V>(total), load<V>(lost)};
        sum.add(load<V>(gates + v * L));
        store(total, sum.total);
        store(lost, sum.lost);
      }
    }
  }

  void store_bias(Index feeds, Index block, const T* sums, T* out) const {
    if (!out) return;
    const Index H = args_.shape.hidden;
    for (Index a = feeds; a < feeds + G; ++a) {
      const ExactSum<V> sum{load<V>(sums + 2 * a * L), load<V>(sums + (2 * a + 1) * L)};
      store(out + Cell::gate_of[a] * H + block * L, sum.value(), lanes_in<T>(block, H));
    }
  }

  // Columns of dx: all but those that an attention has written.
  Index given_columns() const {
    if constexpr (kAsComputed<S>) {
      if (args_.attention) return args_.shape.input - args_.attention->of.context;
    }
    return args_.shape.input;
  }

  // Into how many ranges of columns the threads divide dx. A thread packs the panels of its own columns, for
  // every chunk anew: that costs little beside a chunk's rows, and a packed W_ih would be kept for nothing.
  int input_ranges() const {
    int ranges = threads_;
    while (threads_ % ranges != 0 || blocks_of<T>(given_columns()) < ranges * kInputGroup) {
      if (--ranges <= 1) return 1;
    }
    return ranges;
  }

  void input_gradient(Range all) {
    const int ranges = input_ranges(), sharers = threads_ / ranges;
    const Range columns = share(blocks_of<T>(given_columns()), ranges, thread_ / sharers);
    const Range part = share(all.size(), sharers, thread_ % sharers);
    const Range mine{all.first + part.first, all.first + part.last};
    for (Index first = columns.first; first < columns.last; first += kInputGroup) {
      const Index n = columns.last - first < kInputGroup ? columns.last - first : kInputGroup;
      pack_gates_transposed<Cell>(args_.weights.input, args_.shape.hidden, given_columns(), args_.shape.input,
                                  Cell::x_first, first, n, input_panel_);
      for (Index row = mine.first; row < mine.last; row += kInputRows)
        input_gradient({row, mine.last - row < kInputRows ? mine.last : row + kInputRows}, first, n);
    }
  }

  // n vectors of columns, from `first` on, of a few rows of dx.
  void input_gradient(Range rows, Index first, Index n) {
    const Index I = given_columns();
    const Runs runs = G == A ? Runs{1, from_.units * G, 0} : Runs{from_.units / L, G * L, A * L};
    product<S>(
        rows.size(), runs, int(n), input_panel_, partial_,
        [&](Index i) -> const O* { return from_.gates_of(rows.first + i) + Cell::x_first * L; },
        [&](Index i, T* acc) {
          if (!args_.accumulate_dx) return (void)memset(acc, 0, size_t(n * L) * sizeof(T));
          for (Index j = 0; j < n; ++j) {
            store(acc + j * L,
                  load<V>(args_.dx[rows.first + i] + (first + j) * L, lanes_in<T>(first + j, I)));
          }
        },
        [&](Index i, const T* acc) {
          for (Index j = 0; j < n; ++j) {
            store(args_.dx[rows.first + i] + (first + j) * L, load<V>(acc + j * L),
                  lanes_in<T>(first + j, I));
          }
        });
  }

  const BackwardArgs<S>& args_;
  const GateGradients<Cell, S>& from_;
  const History<Cell, S>& history_;
  Heads<Cell, T> heads_;
  int thread_, threads_;
  O* right_ = nullptr;
  bool in_one_sweep_ = false, shares_right_ = false;
  O *left_ = nullptr, *input_panel_ = nullptr;  // one memory
  T *partial_ = nullptr, *sums_ = nullptr;
};

}  // namespace rnnfused::RNNFUSED_ISA
