// The forward driver: carries any cell over a sequence. A member owns a range of blocks of hidden units; it
// projects the input for its own blocks only, so that the single exchange between members is h, once per
// step.
#pragma once

#include "cpu/attention.h"
#include "cpu/gates.h"
#include "cpu/kernels.h"
#include "cpu/tape.h"
#include "cpu/tile.h"
#include "cpu/varied_forward.h"

namespace rnnfused::RNNFUSED_ISA {

constexpr Index kLargeWeights = 16 << 20;  // bytes; half of a usual last-level cache

// How a stack's streams run, beyond what follows from each one's sizes.
struct Manner {
  int members;
  bool few_rows;
  bool few_inputs;  // of all steps
  bool in_chunks;   // whether other streams wait for the first steps while one does the last
  bool packed;      // whether weights are there, packed
};

template <class S>
Manner manner_of(const Stack<S>& stack, const Plan& plan) {
  return {plan.members, few_rows(plan, stack.shape().batch), few_inputs(stack.shape().rows()), plan.wave > 1,
          stack.packed != nullptr};
}

template <class Cell, class S>
class ForwardStream {
  using T = Compute<S>;
  using O = Operand<S>;
  using Q = Stored<S>;
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  static constexpr Index A = Cell::accumulators, G = Cell::gates;
  static constexpr bool has_cell_state = Cell::states > 1;
  static constexpr int kOutputGroup = 4;  // blocks of projected units per tile

  // Weights: `gates` rows for each of `units`, in the order in which the accumulators take them.
  struct Matrix {
    const S* rows;
    Index size, stride, units;  // stride: from a row to the next
    int gates;
    const int* gate_of;
    const float* row_scales;
    Range blocks;  // this member's, of the units
    // As they are packed; and if they are quantised, the scales of the panels' lanes and where sums begin.
    PackedWeights<S> panels{};
    T* scales = nullptr;
    Sum<S>* starts = nullptr;
    LeftRows<S> left{};      // what it is multiplied with
    Heads<Cell, T> heads{};  // of W_hh

    Index row(int gate, Index block) const { return gate_of[gate] * units + block * L; }
    Index vectors() const { return blocks.size() * gates; }
    // Columns that a block takes.
    RNNFUSED_HD Range terms(Index block) const {
      return heads.several() ? heads.terms(block) : Range{0, size};
    }
    Index vector_of(Index block) const { return (block - blocks.first) * gates; }
    PackedWeights<S> panel(Index block) const {
      return panels.from(vector_of(block) * L * panel_terms<S>(size));
    }
    void take(Arena& packed, Index vectors_at_once, bool few_rows) {
      panels = {packed, vectors_at_once * L * panel_terms<S>(size), few_rows};
      if (!kQuantized<S>) return;
      scales = packed.take<T>(vectors() * L);
      starts = packed.take<Sum<S>>(vectors() * L);
    }
  };

 public:
  // Packed weights are taken from `packed`, everything else from `arena`; the two may be one.
  ForwardStream(const ForwardArgs<S>& args, const Shard& shard, int member, const Manner& manner,
                Arena& packed, Arena& arena)
      : args_(args),
        stream_(args.shape, shard),
        tape_(args.shape, args.recompute, args.tape),
        manner_(manner),
        member_(member),
        group_(manner.few_rows && max_rows(kWideGroup<Cell> * G) >= 2 ? kWideGroup<Cell>
                                                                      : kNarrowGroup<Cell>),
        direct_(!kQuantized<S> && !manner.packed && !args.attention &&
                runs_unpacked(args.shape.steps, args.shape.batch, args.shape.hidden)) {
    const SequenceShape& shape = args.shape;
    const int members = manner.members;
    const Index units = padded<T>(shape.hidden);
    const Index of_output = padded<T>(shape.output);
    start_ = arena.take<Q>(kNarrow<S> ? shard.count * of_output : of_output > units ? of_output : units);
    if (keeps_output()) output_ = arena.take<T>(shard.count * units);
    if (keeps_cell()) cell_ = arena.take<T>(shard.count * units);
    if (!args.tape && projects<Cell>(stream_.shape)) unprojected_ = arena.take<Q>(shard.count * units);
    if constexpr (kAsComputed<S>) {
      if (args.attention) attention_ = {*args.attention, stream_, member, members, arena};
    }
    if constexpr (kStaged<Cell>)
      stage_ = {args_, stream_, args.tape ? tape_.cell : nullptr, member, members, arena};
    if (kStaged<Cell> && !tapes_all_sums()) chunk_gates_ = arena.take<T>(chunk_capacity() * units * A);
    if (converts_rows()) inputs_.take(arena, chunk_capacity(), shape.input);
    const auto lay_out_member = [&](ForwardStream& stream, int m) {
      if constexpr (kStaged<Cell>) stream.share_product(members, m);
      stream.lay_out(share(blocks_of<T>(shape.hidden), members, m),
                     share(blocks_of<T>(shape.output), members, m), packed, arena);
    };
    for (int m = 0; m <= member; ++m) lay_out_member(*this, m);
    // Whoever comes after starts behind every member.
    for (int m = member + 1; m < members; ++m) {
      ForwardStream other = *this;
      lay_out_member(other, m);
    }
  }

  // This member's weights and biases, as it reads them.
  void pack() {
    if (!direct_) pack_weights();
    if constexpr (kAsComputed<S>) {
      if (args_.attention) attention_.pack();
    }
    for (Index block = blocks_.first; block < blocks_.last; ++block)
      sum_biases<Cell>(args_.weights, stream_.shape.hidden, block, bias_of(block));
  }

  // Calls await(n) before it reads the input of the first n positions, and done(n) once all members have
  // written their output.
  template <class Await, class Done>
  void run(Barrier& barrier, Await await, Done done) {
    prepare();
    barrier.wait();  // the states to start from are there
    const Index steps = stream_.shape.steps;
    for (Index s = 0; s < steps; done(s)) {
      Index rows = 0;
      const Index end = collect_chunk(s, rows);
      await(end);
      project_inputs(rows, barrier);
      if constexpr (kStaged<Cell>) {
        if (args_.variation->resets()) barrier.wait();  // what one member has started another goes on with
      }
      for (Index local = 0; s < end; local += stream_.active(s), ++s) {
        attend(s, local, barrier);
        step(s, local);
        barrier.wait();
        if (projects<Cell>(stream_.shape)) {
          project_outputs(s);
          barrier.wait();
        }
        if constexpr (kStaged<Cell>) {
          run_stage(s, local, barrier);
          barrier.wait();
        }
      }
    }
    store_final();
  }

 private:
  // Rows whose input is projected at once: enough to pass over W_ih rarely, few enough to stay in cache. A
  // short sequence is one chunk.
  Index chunk_rows() const {
    const SequenceShape& shape = stream_.shape;
    if (manner_.in_chunks) return shape.rows() / kWaveChunks + 1;
    // The members share a chunk's rows, and so cut alike.
    const Index own = (tape_.units / L + manner_.members - 1) / manner_.members;
    const Index row_bytes = own * A * L * Index(sizeof(T));
    const Index weight_bytes = (shape.input + shape.output) * shape.hidden * G * Index(sizeof(O));
    // Weights beyond what a last-level cache holds come from memory at every pass.
    const Index least = weight_bytes > kLargeWeights ? 256 : 96;
    const Index fit = row_bytes > 0 ? Index(192 * 1024) / row_bytes : 512;
    const Index rows = fit < least ? least : fit > 512 ? 512 : fit;
    if (shape.rows() <= 4 * rows) return 4 * rows;
    // Two chunks need no packed W_ih: worth it where their accumulators are less than that.
    const Index half = (shape.rows() + 1) / 2;
    return !manner_.packed && half * A < shape.input * G ? half : rows;
  }
  Index chunk_capacity() const {
    const Index rows = chunk_rows() + stream_.batch(), all = stream_.shape.rows();
    return rows < all ? rows : all;
  }
  // Whether W_ih is packed anew for every chunk: a panel is packed, used and done with while it is in cache.
  bool packs_by_chunk() const { return !manner_.packed && 2 * chunk_rows() >= stream_.shape.rows(); }
  bool tapes_gates(Index row) const { return args_.tape && tape_.keeps_gates(row); }
  // Whether the accumulators of all rows are where the tape will be.
  bool tapes_all_sums() const {
    return !kNarrow<S> && args_.tape && tape_.keeps_gates(Range{0, stream_.shape.rows()});
  }
  // States that are kept beside y and the tape: those of the step before, unrounded.
  bool keeps_output() const { return kNarrow<S> && !projects<Cell>(stream_.shape); }
  bool keeps_cell() const { return has_cell_state && (kNarrow<S> || !args_.tape); }

  void lay_out(Range blocks, Range outputs, Arena& packed, Arena& arena) {
    const SequenceShape& shape = stream_.shape;
    const Weights<S>& w = args_.weights;
    static constexpr int only[] = {0};
    blocks_ = blocks, outputs_ = outputs;
    const int *const of_x = Cell::gate_of + Cell::x_first, *const of_h = Cell::gate_of + Cell::h_first;
    const Index context = args_.attention ? args_.attention->context : 0, given = shape.input - context;
    input_ = {w.input, given, shape.input, shape.hidden, int(G), of_x, w.input_scales, blocks};
    context_ = {w.input + given, context, shape.input, shape.hidden, int(G), of_x, nullptr, blocks};
    recurrent_ = {w.recurrent, shape.output, shape.output,       shape.hidden,
                  int(G),      of_h,         w.recurrent_scales, kStaged<Cell> ? product_ : blocks};
    recurrent_.heads = {args_.variation, shape.output};
    candidate_ = recurrent_;
    candidate_.blocks = late_;
    projection_ = {w.projection, shape.hidden,        shape.hidden, shape.output, 1,
                   only,         w.projection_scales, outputs};
    const Index batch = stream_.batch(), chunk = chunk_capacity();
    chunk_capacity_ = chunk;
    if (!direct_) {
      const bool few = manner_.few_rows;
      input_.take(packed, packs_by_chunk() ? kNarrowGroup<Cell> * G : input_.vectors(), manner_.few_inputs);
      recurrent_.take(packed, recurrent_.vectors(), few);
      candidate_.take(packed, candidate_.vectors(), few);
      if (context > 0) context_.take(packed, context_.vectors(), few);
      if (projects<Cell>(stream_.shape)) projection_.take(packed, projection_.vectors(), few);
    }
    bias_ = packed.take<T>(blocks.size() * A * L);
    partial_ = arena.take<Sum<S>>(partial_size(chunk > batch ? chunk : batch));
    chunk_row_ = arena.take<Index>(chunk);
    if (!kStaged<Cell> && !tapes_all_sums()) chunk_gates_ = arena.take<T>(chunk * blocks.size() * A * L);
    if (!converts_rows()) return;
    LeftRows<S> states;
    states.take(arena, batch, shape.output > shape.hidden ? shape.output : shape.hidden);
    input_.left = inputs_, recurrent_.left = projection_.left = states;
  }

  // For the largest product of all.
  Index partial_size(Index rows) const {
    const SequenceShape& shape = stream_.shape;
    Index most = 0;
    const auto product_of = [&](Index size, int width) {
      const Index scalars = partial_scalars<S>(rows, Runs{1, size, 0}, width);
      most = scalars > most ? scalars : most;
    };
    product_of(shape.input, int(kNarrowGroup<Cell> * G));
    product_of(shape.output, int(group_ * G));
    if (projects<Cell>(stream_.shape)) product_of(shape.hidden, kOutputGroup);
    return most;
  }

  template <class Body>
  RNNFUSED_HD static void for_groups(Range blocks, Index group, bool backwards, Body body) {
    const Index count = (blocks.size() + group - 1) / group;
    for (Index i = 0; i < count; ++i) {
      const Index first = (backwards ? count - 1 - i : i) * group;
      const Index n = blocks.size() - first < group ? blocks.size() - first : group;
      body(blocks.first + first, n);
    }
  }

  void prepare() {
    if (!manner_.packed) pack();
    const SequenceShape& shape = stream_.shape;
    const Range mine = shape.output > shape.hidden ? outputs_ : blocks_;
    for (Index block = mine.first; !kNarrow<S> && block < mine.last; ++block) store(start_ + block * L, V{});
    for (Index b = 0; b < stream_.batch(); ++b) {
      if (kNarrow<S>) copy_initial(0, outputs_, shape.output, b, start_ + b * padded<T>(shape.output));
      if (output_) copy_initial(0, blocks_, shape.hidden, b, output_ + b * tape_.units);
      if (cell_) copy_initial(1, blocks_, shape.hidden, b, cell_ + b * tape_.units);
    }
    if constexpr (kStaged<Cell>) stage_.prepare();
  }

  void pack_weights() {
    if (!packs_by_chunk()) {
      for_groups(blocks_, kNarrowGroup<Cell>, false, [&](Index block, Index n) { pack_input(block, n); });
    }
    for (const Matrix* m : {&recurrent_, &candidate_}) {
      for_recurrent_groups(*m, false,
                           [&](Index block, Index n) { pack_panel(*m, block, n, m->panel(block)); });
    }
    if (args_.attention) {
      for_groups(blocks_, kNarrowGroup<Cell>, false,
                 [&](Index block, Index n) { pack_panel(context_, block, n, context_.panel(block)); });
    }
    if (!projects<Cell>(stream_.shape)) return;
    for_groups(outputs_, kOutputGroup, false,
               [&](Index block, Index n) { pack_panel(projection_, block, n, projection_.panel(block)); });
  }

  PackedWeights<S> input_panel(Index block) const {
    return packs_by_chunk() ? input_.panels : input_.panel(block);
  }

  void pack_input(Index block, Index n) { pack_panel(input_, block, n, input_panel(block)); }

  // Groups of the units of W_hh whose blocks take the same columns.
  template <class Body>
  RNNFUSED_HD void for_recurrent_groups(const Matrix& m, bool backwards, Body body) const {
    for_groups(m.blocks, group_, backwards,
               [&](Index first, Index n) { m.heads.for_alike_sums(first, n, body); });
  }

  void pack_panel(const Matrix& m, Index block, Index n, PackedWeights<S> panel) {
    const Range terms = m.terms(block);
    panel.visit([&](auto* out) {
      pack_gates(m.rows + terms.first, m.units, terms.size(), m.stride, m.gates, m.gate_of, block, n, out);
    });
    if constexpr (kQuantized<S>) {
      Index at = m.vector_of(block) * L;
      for (Index b = block; b < block + n; ++b) {
        for (int g = 0; g < m.gates; ++g, at += L) {
          const Index row = m.row(g, b), lanes = lanes_in<T>(b, m.units);
          store(m.scales + at, load<V>(m.row_scales + row, lanes));
          store_starts(m.rows + row * m.size, m.size, lanes, m.size, m.starts + at);
        }
      }
    }
  }

  // This member's lanes of an initial state, with zeros in the lanes beyond the last unit.
  template <class To>
  void copy_initial(int state, Range blocks, Index units, Index b, To* out) const {
    const T* initial = args_.initial[state].find(stream_.sequence(b));
    for (Index block = blocks.first; block < blocks.last; ++block)
      store(out + block * L, initial ? load<V>(initial + block * L, lanes_in<T>(block, units)) : V{});
  }

  T* bias_of(Index block) const { return bias_ + (block - blocks_.first) * A * L; }

  // Where the accumulators of a row's block are; `local` counts the rows of the current chunk. Those of a
  // narrow group's blocks are neighbours.
  T* gates_of(Index row, Index local, Index block) const {
    if constexpr (!kNarrow<S>) {
      if (tapes_gates(row)) return tape_.gates_of(row) + block * A * L;
    }
    // All members read those of a staged layer.
    if (kStaged<Cell>) return chunk_gates_ + (local * (tape_.units / L) + block) * A * L;
    const Index at = block - blocks_.first, in_group = at % kNarrowGroup<Cell>, group = at - in_group;
    const Index rest = blocks_.size() - group, n = rest < kNarrowGroup<Cell> ? rest : kNarrowGroup<Cell>;
    return chunk_gates_ + (group * chunk_capacity_ + local * n + in_group) * A * L;
  }

  // Whether the products can add to the accumulators where these are kept: both feed all of them, and those
  // of a group of blocks are neighbours.
  bool in_place() const {
    return G == A && !direct_ && !kQuantized<S> && (tapes_all_sums() || group_ == kNarrowGroup<Cell>);
  }

  const Q* previous_output(Index s, Index b) const {
    const Index row = stream_.previous(s, b);
    if (row >= 0) return args_.y[row];
    if constexpr (kNarrow<S>) {
      return start_ + b * padded<T>(stream_.shape.output);
    } else {
      return initial_or_zeros(0, b);
    }
  }

  // What the cell is given of it, and of c; the former only without a projection, after which h has other
  // units than the gates have, and no cell that can be projected reads it.
  RNNFUSED_HD V previous_output(const Q* h, Index b, Index block) const {
    if (projects<Cell>(stream_.shape)) return V{};
    if (kNarrow<S>) return load<V>(output_ + b * tape_.units + block * L);
    return load<V>(h + block * L, lanes_in<T>(block, stream_.shape.hidden));
  }
  const T* previous_cell(Index s, Index b) const {
    if constexpr (!kNarrow<S>) {
      if (!cell_) {
        const Index row = stream_.previous(s, b);
        return row >= 0 ? tape_.cell_of(row) : initial_or_zeros(1, b);
      }
    }
    return cell_ + b * tape_.units;
  }

  const T* initial_or_zeros(int state, Index b) const {
    const T* initial = args_.initial[state].find(stream_.sequence(b));
    return initial ? initial : start_;
  }

  bool converts_rows() const { return LeftRows<S>::converts && !direct_; }

  // Rows of a step, which every member converts for itself.
  template <class RowOf>
  RNNFUSED_HD void convert_states(Index rows, const Matrix& m, RowOf a) const {
    if (converts_rows()) m.left.convert({0, rows}, m.size, a);
  }

  // The rows' products with n blocks of units from `first` on: by tiles with the packed panel, or with the
  // weights as they lie. They are added to the vectors at addend(row, block); sink(row, acc) takes the sums.
  // Rows that have to be converted were. N is the number of the matrix's gates.
  template <int N, class RowOf, class Addend, class Sink>
  RNNFUSED_HD void multiply(Index rows, const Matrix& m, Index first, Index n, PackedWeights<S> panel,
                            RowOf a, Addend addend, Sink sink) {
    const int width = int(n) * N;
    if constexpr (kQuantized<S>) {
      const Index at = m.vector_of(first) * L;
      return product<S>(
          rows, Runs{1, panel_terms<S>(m.size), 0}, width, panel.as_multiplied(), partial_,
          m.left.of(m.size, a), [&](Index, Sum<S>* acc) { copy_vectors(m.starts + at, acc, width); },
          [&](Index row, const Sum<S>* acc) {
            alignas(64) T sums[kMaxWidth * L];
            const T scale = m.left.scale[row];
            for (Index b = 0; b < n; ++b) {
              const T* const from = addend(row, first + b);
              const T* const scales = m.scales + at + b * N * L;
              for (int g = 0; g < N; ++g) {
                const Index i = (b * N + g) * L;
                const V product_of = convert_lanes<V>(load<Native<Sum<S>>>(acc + i));
                store(sums + i, fma(product_of, load<V>(scales + g * L) * scale, load<V>(from + g * L)));
              }
            }
            sink(row, sums);
          });
    } else {
      const auto init = [&](Index row, T* acc) {
        for (Index b = 0; b < n; ++b) copy_vectors(addend(row, first + b), acc + b * N * L, N);
      };
      const Range terms = m.terms(first);
      const auto left = m.left.of(m.size, a);
      const auto part = [&](Index row) -> const Left<S>* { return left(row) + terms.first; };
      if (!direct_) {
        return panel.visit([&](const auto* weights) {
          product<S>(rows, Runs{1, terms.size(), 0}, width, weights, partial_, part, init, sink);
        });
      }
      T acc[kMaxWidth * L];
      for (Index row = 0; row < rows; ++row) {
        init(row, acc);
        T* at = acc;
        for (Index block = first; block < first + n; ++block) {
          for (int g = 0; g < N; ++g, at += L)
            dots(m.rows + m.row(g, block) * m.size, lanes_in<T>(block, m.units), m.size, a(row), at);
        }
        sink(row, acc);
      }
    }
  }

  // The rows of the steps from s on that make up a chunk; returns the first step after it.
  Index collect_chunk(Index s, Index& rows) {
    const Index target = chunk_rows();
    for (; s < stream_.shape.steps && rows < target; ++s) {
      for (Index b = 0; b < stream_.active(s); ++b) chunk_row_[rows++] = stream_.row(s, b);
    }
    return s;
  }

  // Input projection of a chunk, biases included. Its rows the members convert together.
  void project_inputs(Index rows, Barrier& barrier) {
    const auto input = [&](Index i) -> const Q* { return args_.x[chunk_row_[i]]; };
    if (converts_rows()) {
      input_.left.convert(share(rows, manner_.members, member_), input_.size, input);
      barrier.wait();
    }
    for_groups(blocks_, kNarrowGroup<Cell>, false, [&](Index first, Index n) {
      if (packs_by_chunk() && !direct_) pack_input(first, n);
      if constexpr (!kQuantized<S>) {
        if (in_place()) {
          return input_panel(first).visit([&](const auto* weights) {
            product_at<S>(
                rows, Runs{1, input_.size, 0}, int(n * G), weights, input_.left.of(input_.size, input),
                [&](Index i, Index, bool starts, bool) {
                  T* gates = gates_of(chunk_row_[i], i, first);
                  if (starts) start_projection<Cell>(bias_of(first), n, gates);
                  return gates;
                },
                [](Index, const T*) {});
          });
        }
      }
      multiply<G>(
          rows, input_, first, n, input_panel(first), input,
          [&](Index, Index block) { return bias_of(block) + Cell::x_first * L; },
          [&](Index i, const T* acc) {
            keep_projection<Cell>(bias_of(first), n, acc,
                                  [&](Index b) { return gates_of(chunk_row_[i], i, first + b); });
          });
    });
  }

  // What the step is given beside its input: contexts of the states before it, and their products.
  void attend([[maybe_unused]] Index s, [[maybe_unused]] Index local, [[maybe_unused]] Barrier& barrier) {
    if constexpr (kAsComputed<S>) {
      if (!args_.attention) return;
      attention_.run(stream_, s, [&](Index b) { return previous_output(s, b); });
      barrier.wait();
      for_groups(blocks_, kNarrowGroup<Cell>, s % 2 == 1, [&](Index first, Index n) {
        const auto fed = [&](Index b, Index block) {
          return gates_of(stream_.row(s, b), local + b, block) + Cell::x_first * L;
        };
        multiply<G>(
            stream_.active(s), context_, first, n, context_.panel(first),
            [&](Index b) { return args_.x[stream_.row(s, b)] + input_.size; }, fed,
            [&](Index b, const T* acc) {
              for (Index i = 0; i < n; ++i) copy_vectors(acc + i * G * L, fed(b, first + i), G);
            });
      });
    }
  }

  // One step: recurrent product, gates and states of this member's blocks. Every other step walks the blocks
  // backwards: weights that do not fit in a cache level are then half there, instead of not at all.
  void step(Index s, Index local) {
    multiply_step(s, local, recurrent_, [&](Index b) {
      if constexpr (kStaged<Cell>) {
        if (stage_.drops()) return static_cast<const Q*>(stage_.operand(s, b));
      }
      return previous_output(s, b);
    });
  }

  void run_stage(Index s, Index local, Barrier& barrier) {
    const auto sums = [&](Index b, Index block) { return gates_of(stream_.row(s, b), local + b, block); };
    if (args_.variation->resets()) {
      stage_.reset(s, sums);
      barrier.wait();
      multiply_step(s, local, candidate_,
                    [&](Index b) { return static_cast<const Q*>(stage_.reset_of(s, b)); });
      barrier.wait();
    }
    stage_.run(s, sums, barrier);
  }

  template <class RowOf>
  RNNFUSED_HD void multiply_step(Index s, Index local, const Matrix& m, RowOf h_prev) {
    const Index rows = stream_.active(s);
    convert_states(rows, m, h_prev);
    for_recurrent_groups(m, s % 2 == 1, [&](Index first, Index n) {
      if constexpr (!kQuantized<S>) {
        if (in_place()) {
          return m.panel(first).visit([&](const auto* weights) {
            product_at<S>(
                rows, Runs{1, m.size, 0}, int(n * G), weights, m.left.of(m.size, h_prev),
                [&](Index b, Index, bool, bool) { return gates_of(stream_.row(s, b), local + b, first); },
                [&](Index b, const T* acc) { epilogue(s, b, local + b, first, n, acc); });
          });
        }
      }
      multiply<G>(
          rows, m, first, n, m.panel(first), h_prev,
          [&](Index b, Index block) {
            return gates_of(stream_.row(s, b), local + b, block) + Cell::h_first * L;
          },
          [&](Index b, const T* acc) { epilogue(s, b, local + b, first, n, acc); });
    });
  }

  RNNFUSED_HD void epilogue(Index s, Index b, Index local, Index first, Index n, const T* acc) {
    const SequenceShape& shape = stream_.shape;
    const Index row = stream_.row(s, b);
    if constexpr (kStaged<Cell>) {
      for (Index i = 0; i < n; ++i)
        copy_vectors(acc + i * G * L, gates_of(row, local, first + i) + Cell::h_first * L, G);
    } else {
      const Q* h_prev = previous_output(s, b);
      const T* c_prev = has_cell_state ? previous_cell(s, b) : nullptr;
      Q* h = !projects<Cell>(shape) ? args_.y[row]
             : args_.tape           ? tape_.unprojected_of(row)
                                    : unprojected_ + b * tape_.units;
      for (Index i = 0; i < n; ++i) {
        const Index block = first + i, at = block * L, lanes = lanes_in<T>(block, shape.hidden);
        V accumulators[A], prev[Cell::states], next[Cell::states], taped[A];
        load_accumulators<Cell>(gates_of(row, local, block), acc + i * G * L, accumulators);
        prev[0] = previous_output(h_prev, b, block);
        if constexpr (has_cell_state) prev[1] = load<V>(c_prev + at, lanes);
        Cell::forward(accumulators, prev, next, taped);
        if (tapes_gates(row)) {
          Q* gates = tape_.gates_of(row) + block * A * L;
          for (int a = 0; a < Cell::taped; ++a) store(gates + a * L, taped[a]);
        }
        store(h + at, next[0], projects<Cell>(shape) ? L : lanes);
        if (kNarrow<S> && output_) store(output_ + b * tape_.units + at, next[0]);
        if constexpr (has_cell_state) {
          if (cell_) store(cell_ + b * tape_.units + at, next[1]);
          if (args_.tape) store(tape_.cell_of(row) + at, next[1]);
          if (args_.cells.data) store(args_.cells[row] + at, next[1], lanes);
        }
      }
    }
  }

  // Sak et al. (2014): h = W_hr (o tanh(c)).
  void project_outputs(Index s) {
    const auto unprojected = [&](Index b) -> const Q* {
      return args_.tape ? tape_.unprojected_of(stream_.row(s, b)) : unprojected_ + b * tape_.units;
    };
    convert_states(stream_.active(s), projection_, unprojected);
    for_groups(outputs_, kOutputGroup, false, [&](Index first, Index n) {
      multiply<1>(
          stream_.active(s), projection_, first, n, projection_.panel(first), unprojected,
          [&](Index, Index) {
            static constexpr T zeros[L] = {};
            return zeros;
          },
          [&](Index b, const T* acc) {
            Q* h = args_.y[stream_.row(s, b)];
            for (Index i = 0; i < n; ++i) {
              store(h + (first + i) * L, load<V>(acc + i * L), lanes_in<T>(first + i, projection_.units));
            }
          });
    });
  }

  void store_final() const {
    if constexpr (kStaged<Cell>) stage_.store_final();
    const SequenceShape& shape = stream_.shape;
    for (Index b = 0; b < stream_.batch(); ++b) {
      const Index row = stream_.final_row(b);
      if (output_) {
        store_state(0, blocks_, shape.hidden, b, output_ + b * tape_.units);
      } else {
        store_state(0, outputs_, shape.output, b, row >= 0 ? args_.y[row] : nullptr);
      }
      if (!has_cell_state) continue;
      if (cell_) {
        store_state(1, blocks_, shape.hidden, b, cell_ + b * tape_.units);
      } else {
        store_state(1, blocks_, shape.hidden, b, row >= 0 ? tape_.cell_of(row) : nullptr);
      }
    }
  }

  // A row that was never active ends where it started.
  template <class From>
  void store_state(int state, Range blocks, Index units, Index b, const From* from) const {
    const Index sequence = stream_.sequence(b);
    T* const to = args_.final[state].find(sequence);
    if (!to) return;
    const T* const initial = from ? nullptr : args_.initial[state].find(sequence);
    for (Index block = blocks.first; block < blocks.last; ++block) {
      const Index at = block * L, lanes = lanes_in<T>(block, units);
      store(to + at, from ? load<V>(from + at, lanes) : initial ? load<V>(initial + at, lanes) : V{}, lanes);
    }
  }

  const ForwardArgs<S>& args_;
  Stream stream_;
  Tape<Cell, Q> tape_;
  // A staged layer's member has a share of what is multiplied at once, and of what comes after a reset gate.
  void share_product(int members, int member) {
    const Variation<T>& v = *args_.variation;
    const Index all = v.multiplies() ? stream_.shape.hidden / L : 0,
                last = v.resets() ? v.unit_scalars / L : 0;
    const Range late = share(last, members, member);
    product_ = share(all - last, members, member);
    late_ = {all - last + late.first, all - last + late.last};
  }

  Range product_{}, late_{};    // of a staged layer's recurrent product
  Range blocks_{}, outputs_{};  // of hidden units, and of units after a projection
  Manner manner_;
  int member_;
  Index group_;
  bool direct_;  // weights are read as they lie

  // Shared by the members, each its own lanes. What h starts from: of narrow numbers the initial states
  // rounded [batch, P], otherwise zeros where there are none.
  Q* start_ = nullptr;
  T *output_ = nullptr, *cell_ = nullptr;  // [batch, units]
  Q* unprojected_ = nullptr;               // [batch, units]
  Matrix input_{}, context_{}, recurrent_{}, candidate_{}, projection_{};
  std::conditional_t<kAsComputed<S>, AttentionForward<T>, std::nullptr_t> attention_{};
  std::conditional_t<kStaged<Cell>, VariedForward<T>, std::nullptr_t> stage_{};
  T* bias_ = nullptr;
  Sum<S>* partial_ = nullptr;
  LeftRows<S> inputs_{};      // a chunk's, shared by the members
  T* chunk_gates_ = nullptr;  // [narrow groups, rows of the chunk, blocks, accumulators, lanes]
  Index chunk_capacity_ = 0;
  Index* chunk_row_ = nullptr;
};

// A stream among those of a stack.
struct StreamPlace {
  int layer, direction;
  Shard shard;
  int number;
};

// Calls body(place) for the streams of one group, in order. Streams are numbered by layer, shard, direction.
template <class Body>
RNNFUSED_HD void for_streams(const Plan& plan, int layers, int directions, const SequenceShape& shape,
                             int group, Body body) {
  const int of_layer = directions * plan.shards;
  for (int s = group; s < layers * of_layer; s += plan.groups) {
    const int shard = s % of_layer / directions;
    body(StreamPlace{s / of_layer, s % directions, shard_of(shape, plan.shards, shard), s});
  }
}

template <class S, class Body>
RNNFUSED_HD void for_streams(const Plan& plan, const Stack<S>& stack, int group, Body body) {
  for_streams(plan, stack.layers, stack.directions(), stack.shape(), group, body);
}

// Scratch is one slab per group, large enough for any of its streams.
template <class Cell, class S>
Index forward_slab(const Stack<S>& stack, const Plan& plan) {
  Index most = 0;
  for (int group = 0; group < plan.groups; ++group) {
    for_streams(plan, stack, group, [&](const StreamPlace& at) {
      Arena arena(nullptr), elsewhere(nullptr);
      ForwardStream<Cell, S>(stack.layer[at.layer].forward[at.direction], at.shard, 0, manner_of(stack, plan),
                             stack.packed ? elsewhere : arena, arena);
      most = arena.used() > most ? arena.used() : most;
    });
  }
  return most;
}

template <class Cell, class S>
Index forward_scratch(const Stack<S>& stack, const Plan& plan) {
  return forward_slab<Cell>(stack, plan) * plan.groups;
}

// Packed weights are one slab per layer and direction, whose shards share it; each is large enough for any.
template <class Cell, class S>
Index packed_slab(const Stack<S>& stack, const Plan& plan) {
  Manner manner = manner_of(stack, plan);
  manner.packed = true;
  Index most = 0;
  for (int l = 0; l < stack.layers; ++l) {
    Arena packed(nullptr), elsewhere(nullptr);
    const ForwardArgs<S>& args = stack.layer[l].forward[0];
    ForwardStream<Cell, S>(args, {0, args.shape.batch, 1}, 0, manner, packed, elsewhere);
    most = packed.used() > most ? packed.used() : most;
  }
  return most;
}

template <class Cell, class S>
Index packed_bytes(const Stack<S>& stack, const Plan& plan) {
  return packed_slab<Cell>(stack, plan) * stack.layers * stack.directions();
}

// Where the packed weights of a layer and direction are.
template <class Cell, class S>
Arena packed_at(const Stack<S>& stack, const Plan& plan, int layer, int direction) {
  if (!stack.packed) return Arena(nullptr);
  const Index slab = packed_slab<Cell>(stack, plan) * (layer * stack.directions() + direction);
  return Arena(static_cast<char*>(stack.packed) + slab);
}

// Packs the weights of a stack for any shape whose plan has as many members, and few rows and inputs where
// this one has.
template <class Cell, class S>
void pack(const Stack<S>& stack, const Team& team, int thread) {
  const int members = team.plan.members, parts = stack.layers * stack.directions() * members;
  for (int part = thread; part < parts; part += team.plan.threads()) {
    const int direction = part / members % stack.directions(), layer = part / members / stack.directions();
    const ForwardArgs<S>& args = stack.layer[layer].forward[direction];
    Arena packed = packed_at<Cell>(stack, team.plan, layer, direction), elsewhere(nullptr);
    ForwardStream<Cell, S>(args, {0, args.shape.batch, 1}, part % members, manner_of(stack, team.plan),
                           packed, elsewhere)
        .pack();
  }
}

template <class Cell, class S>
void forward(const Stack<S>& stack, const Team& team, int thread) {
  const Plan& plan = team.plan;
  const int group = thread / plan.members, member = thread % plan.members;
  const int directions = stack.directions(), of_layer = directions * plan.shards;
  char* own = static_cast<char*>(team.scratch) + forward_slab<Cell>(stack, plan) * group;
  for_streams(plan, stack, group, [&](const StreamPlace& at) {
    Arena arena(own), packed = packed_at<Cell>(stack, plan, at.layer, at.direction);
    ForwardStream<Cell, S> stream(stack.layer[at.layer].forward[at.direction], at.shard, member,
                                  manner_of(stack, plan), stack.packed ? packed : arena, arena);
    // Both directions of a shard are its input, and of a reversed one the first steps come last.
    Progress* below = at.layer > 0 ? team.progress + (at.number - at.direction - of_layer) : nullptr;
    const Index steps = stack.shape().steps;
    stream.run(
        team.group[group],
        [&](Index positions) {
          for (int d = 0; below && d < directions; ++d) below[d].wait_for(directions > 1 ? steps : positions);
        },
        [&](Index positions) {
          if (member == 0 && stack.layers > 1) team.progress[at.number].set(positions);
        });
    team.group[group].wait();  // the slab is free for the next stream
  });
}

}  // namespace rnnfused::RNNFUSED_ISA
