// The backward driver, back-propagation through time: for every step, last first, the gradient of h is what
// the outside gives plus the product of the next step's gate gradients with W_hh; the cell turns it into this
// step's gate gradients. The gradients of the weights and of the input follow for a chunk of steps at once
// (gradients.h).
#pragma once

#include "cpu/forward.h"
#include "cpu/gradients.h"
#include "cpu/rebuild.h"
#include "cpu/varied_backward.h"

namespace rnnfused::RNNFUSED_ISA {

template <class Cell, class S>
class BackwardStream {
  using T = Compute<S>;
  using O = Operand<S>;
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  static constexpr Index A = Cell::accumulators, G = Cell::gates;
  static constexpr bool has_cell_state = Cell::states > 1;

 public:
  BackwardStream(const BackwardArgs<S>& args, const GateGradients<Cell, S>& out,
                 const History<Cell, S>& history, const Shard& shard, int member, int members, Arena& arena)
      : args_(args),
        out_(out),
        history_(history),
        stream_(args.shape, shard),
        tape_(tape_of<Cell>(args)),
        heads_(args.variation, args.shape.output) {
    const SequenceShape& shape = args.shape;
    outputs_units_ = padded<T>(shape.output);
    carry_h_ = arena.take<T>(shard.count * outputs_units_);
    if (has_cell_state) carry_c_ = arena.take<T>(shard.count * tape_.units);
    for (int m = 0; m < members; ++m) {
      const Range blocks = share(blocks_of<T>(shape.hidden), members, m);
      const Range outputs = share(blocks_of<T>(shape.output), members, m);
      T* partial = arena.take<T>(shard.count * kMaxWidth * L);
      const PackedWeights<S> recurrent(arena, outputs.size() * L * tape_.units * G, few_rows(shard.count));
      O* projection = projects<Cell>(stream_.shape)
                          ? arena.take<O>(blocks.size() * L * panel_terms<S>(shape.output))
                          : nullptr;
      T* of_heads = heads_.several() ? arena.take<T>(shard.count * kGroup * L) : nullptr;
      const Range contexts = share(blocks_of<T>(context()), members, m);
      O* of_contexts = arena.take<O>(contexts.size() * L * tape_.units * G);
      if (m != member) continue;
      blocks_ = blocks, outputs_ = outputs, contexts_ = contexts, context_panels_ = of_contexts;
      of_heads_ = of_heads;
      partial_ = partial, recurrent_panels_ = recurrent, projection_panels_ = projection;
    }
    if constexpr (kAsComputed<S>) {
      if (args.attention) attention_ = {*args.attention, stream_, member, members, arena};
    }
    if constexpr (kStaged<Cell>) stage_ = {args_, stream_, tape_.cell, carry_h_, member, members, arena};
  }

  // The members meet after it.
  void prepare() {
    const SequenceShape& shape = stream_.shape;
    for_output_groups(multiplies() ? outputs_ : Range{0, 0}, false, [&](Index first, Index n) {
      if (heads_.several()) return pack_heads(first, n);
      recurrent_panel(first).visit([&](auto* out) {
        pack_gates_transposed<Cell>(args_.weights.recurrent, shape.hidden, shape.output, shape.output,
                                    Cell::h_first, first, n, out);
      });
    });
    if constexpr (kAsComputed<S>) {
      for_groups(contexts_, false, [&](Index first, Index n) {
        pack_gates_transposed<Cell>(args_.weights.input + shape.input - context(), shape.hidden, context(),
                                    shape.input, Cell::x_first, first, n, context_panel(first));
      });
      if (args_.attention) attention_.pack();
    }
    if constexpr (kStaged<Cell>) stage_.prepare();
    if (projects<Cell>(stream_.shape)) {
      for_groups(blocks_, false, [&](Index first, Index n) {
        pack_columns(args_.weights.projection, shape.hidden, shape.output, shape.hidden, first, n,
                     projection_panel(first));
      });
    }
    for (Index b = 0; b < stream_.batch(); ++b) {
      start_carry(0, outputs_, shape.output, b, carry_h_ + b * outputs_units_);
      if (has_cell_state) start_carry(1, blocks_, shape.hidden, b, carry_c_ + b * tape_.units);
    }
  }

  // The positions of a chunk, last first; with the first of all, also the gradients of the initial states.
  void run(Range positions, Barrier& barrier) {
    const Index end = positions.first > 0 ? positions.first : -1;
    for (Index s = positions.last - 1; s >= end; --s) {
      output_gradients(s);
      if (s < 0) break;
      if (projects<Cell>(stream_.shape)) {
        barrier.wait();
        unproject(s);
      }
      if constexpr (kStaged<Cell>) unstage(s, barrier);
      barrier.wait();
      unattend(s, barrier);
    }
  }

 private:
  static constexpr Index kGroup = 4;

  bool multiplies() const {
    if constexpr (kStaged<Cell>) return args_.variation->multiplies();
    return true;
  }

  // Groups of h whose blocks feed the same units.
  template <class Body>
  RNNFUSED_HD void for_output_groups(Range blocks, bool backwards, Body body) const {
    for_groups(blocks, backwards, [&](Index first, Index n) { heads_.for_alike_outputs(first, n, body); });
  }

  // Gate by gate the rows of W_hh that n blocks of h feed.
  void pack_heads([[maybe_unused]] Index first, [[maybe_unused]] Index n) {
    if constexpr (kStaged<Cell>) {
      const Index P = stream_.shape.output;
      const Range fed = heads_.fed(first);
      for (Index g = 0; g < args_.variation->gates; ++g) {
        pack_gates_transposed<Cell>(args_.weights.recurrent + (g * heads_.blocks() + fed.first) * L * P,
                                    fed.size() * L, P, P, Cell::h_first, first, n,
                                    head_panel(g, first, n, fed));
      }
    }
  }
  O* head_panel(Index gate, Index first, Index n, Range fed) const {
    return recurrent_panel(first).as_multiplied() + gate * fed.size() * L * n * L;
  }

  // The product of what is left in `gates(i)` of one gate of some rows, of whose sums' gradients n blocks of
  // h reach some.
  template <class GatesOf, class Init, class Sink>
  RNNFUSED_HD void multiply_head(Index rows, Index gate, Index first, Index n, GatesOf gates, Init init,
                                 Sink sink) {
    const Range fed = heads_.fed(first);
    const Index skipped = (gate * heads_.blocks() + fed.first) * A * L + Cell::h_first * L;
    product<S>(
        rows, Runs{fed.size(), L, A * L}, int(n), head_panel(gate, first, n, fed), partial_,
        [&](Index i) -> const O* { return gates(i) + skipped; }, init, sink);
  }

  // The gradients of the sums, by way of the states.
  void unstage(Index s, Barrier& barrier) {
    const auto sums = [&](Index b, Index block) {
      const Index row = stream_.row(s, b), at = block * A * L;
      return (tape_.keeps_gates(row) ? tape_.gates_of(row) : out_.gates_of(row)) + at;
    };
    const auto out = [&](Index b, Index block) { return out_.gates_of(stream_.row(s, b)) + block * A * L; };
    stage_.run(s, sums, out, barrier);
    if (!args_.variation->resets()) return;
    barrier.wait();
    // Through the last gate's product to the reset gate.
    for_output_groups(outputs_, s % 2 != 0, [&](Index first, Index n) {
      multiply_head(
          stream_.active(s), args_.variation->gates - 1, first, n,
          [&](Index b) { return out_.gates_of(stream_.row(s, b)); },
          [&](Index, T* acc) { memset(acc, 0, size_t(n * L) * sizeof(T)); },
          [&](Index b, const T* acc) {
            for (Index i = 0; i < n; ++i) stage_.unreset(s, b, first + i, load<V>(acc + i * L), sums, out);
          });
    });
  }

  template <class Body>
  RNNFUSED_HD static void for_groups(Range blocks, bool backwards, Body body) {
    const Index count = (blocks.size() + kGroup - 1) / kGroup;
    for (Index i = 0; i < count; ++i) {
      const Index first = (backwards ? count - 1 - i : i) * kGroup;
      const Index n = blocks.size() - first < kGroup ? blocks.size() - first : kGroup;
      body(blocks.first + first, n);
    }
  }

  void start_carry(int state, Range blocks, Index units, Index b, T* carry) const {
    const T* from = args_.dfinal[state].find(stream_.sequence(b));
    for (Index block = blocks.first; block < blocks.last; ++block) {
      const Index at = block * L;
      store(carry + at, from ? load<V>(from + at, lanes_in<T>(block, units)) : V{});
    }
  }

  PackedWeights<S> recurrent_panel(Index block) const {
    return recurrent_panels_.from((block - outputs_.first) * L * tape_.units * G);
  }
  O* context_panel(Index block) const {
    return context_panels_ + (block - contexts_.first) * L * tape_.units * G;
  }
  O* projection_panel(Index block) const {
    return projection_panels_ + (block - blocks_.first) * L * panel_terms<S>(stream_.shape.output);
  }

  // The part of a row of gate gradients that goes through W_hh, or through W_ih.
  Runs fed_runs() const { return G == A ? Runs{1, tape_.units * G, 0} : Runs{tape_.units / L, G * L, A * L}; }

  // Those of them that reach the h before at once.
  Runs recurrent_runs() const {
    Runs runs = fed_runs();
    if constexpr (kStaged<Cell>) {
      if (args_.variation->resets()) runs.runs -= args_.variation->unit_scalars / L;
    }
    return runs;
  }

  // Gradient of h after position s, this member's outputs. Rows fall into three kinds: those that go on to
  // position s + 1 (a product is added), those that end at s (none), and those that start at s + 1, for which
  // the product is the gradient of the initial state.
  void output_gradients(Index s) {
    const Index here = stream_.active(s), after = stream_.active(s + 1);
    const Index both = here < after ? here : after;
    for_output_groups(outputs_, s % 2 != 0, [&](Index first, Index n) {
      add_recurrence(s, 0, both, first, n,
                     [&](Index b, const T* acc) { finish_output(s, b, first, n, acc); });
      if (args_.dinitial[0].data) {
        add_recurrence(s, here, after, first, n,
                       [&](Index b, const T* acc) { store_initial_output(b, first, n, acc); });
      }
      T acc[kGroup * L];
      for (Index b = both; b < here; ++b) {
        start_output(s, b, first, n, acc);
        finish_output(s, b, first, n, acc);
      }
    });
    if constexpr (has_cell_state) {
      for (Index b = here; b < after; ++b)
        store_initial(1, stream_.shape.hidden, blocks_, b, carry_c_ + b * tape_.units);
    }
    if constexpr (kStaged<Cell>) {
      for (Index b = here; b < after; ++b) stage_.store_initial_cell(b);
      if (s < 0) stage_.store_parameters();
    }
    if (s < 0) store_never_active(after);
  }

  template <class Sink>
  RNNFUSED_HD void add_recurrence(Index s, Index from, Index to, Index first, Index n, Sink sink) {
    if (from >= to) return;
    if (!multiplies()) {
      const T nothing[kGroup * L] = {};
      for (Index b = from; b < to; ++b) sink(b, nothing);
      return;
    }
    if constexpr (kStaged<Cell>) {
      if (heads_.several()) return add_heads(s, from, to, first, n, sink);
    }
    recurrent_panel(first).visit([&](const auto* panel) {
      product<S>(
          to - from, recurrent_runs(), int(n), panel, partial_,
          [&](Index i) -> const O* {
            return out_.gates_of(stream_.row(s + 1, from + i)) + Cell::h_first * L;
          },
          [&](Index i, T* acc) { start_output(s, from + i, first, n, acc); },
          [&](Index i, const T* acc) { sink(from + i, acc); });
    });
  }

  // The same gate by gate, for between those of a head lie those of others.
  template <class Sink>
  RNNFUSED_HD void add_heads(Index s, Index from, Index to, Index first, Index n, Sink sink) {
    const Index gates = args_.variation->gates - args_.variation->resets();
    const auto kept = [&](Index i) { return of_heads_ + i * kGroup * L; };
    for (Index g = 0; g < gates; ++g) {
      multiply_head(
          to - from, g, first, n, [&](Index i) { return out_.gates_of(stream_.row(s + 1, from + i)); },
          [&](Index i, T* acc) {
            g == 0 ? start_output(s, from + i, first, n, acc) : copy_vectors(kept(i), acc, n);
          },
          [&](Index i, const T* acc) {
            g == gates - 1 ? sink(from + i, acc) : copy_vectors(acc, kept(i), n);
          });
    }
  }

  // What reaches h from outside the recurrent product: dy (where the row is active) and the cell's direct
  // path.
  RNNFUSED_HD void start_output(Index s, Index b, Index first, Index n, T* acc) const {
    if constexpr (kStaged<Cell>) {
      // The product alone, since what reaches the one is not what reaches the other.
      if (b < stream_.active(s + 1)) return (void)memset(acc, 0, size_t(n * L) * sizeof(T));
    }
    const T* carry = carry_h_ + b * outputs_units_;
    const S* dy = b < stream_.active(s) && args_.dy.data ? args_.dy[stream_.row(s, b)] : nullptr;
    for (Index i = 0; i < n; ++i) {
      const Index at = (first + i) * L;
      V sum = load<V>(carry + at);
      if (dy) sum = sum + load<V>(dy + at, lanes_in<T>(first + i, stream_.shape.output));
      store(acc + i * L, sum);
    }
  }

  // Of a staged layer all that reaches h, from the product alone.
  RNNFUSED_HD V staged_output(Index s, Index b, Index block, V acc) const {
    if (b >= stream_.active(s + 1)) return acc;  // there is none
    const V handed_back = stage_.handed_back(b, block, acc);
    if (b >= stream_.active(s) || !args_.dy.data) return handed_back;
    return handed_back +
           load<V>(args_.dy[stream_.row(s, b)] + block * L, lanes_in<T>(block, stream_.shape.output));
  }

  RNNFUSED_HD void finish_output(Index s, Index b, Index first, Index n, const T* acc) {
    if constexpr (kStaged<Cell>) {
      for (Index i = 0; i < n; ++i)
        store(stage_.output_gradient_of(b) + (first + i) * L,
              staged_output(s, b, first + i, load<V>(acc + i * L)));
      return;
    }
    if (!projects<Cell>(stream_.shape)) return epilogue(s, b, first, n, acc);
    O* kept = out_.output_of(stream_.row(s, b));
    T* carry = carry_h_ + b * outputs_units_;
    for (Index i = 0; i < n; ++i) {
      store(kept + (first + i) * L, load<V>(acc + i * L));
      store(carry + (first + i) * L, V{});  // a cell that can be projected has no direct path from h to h
    }
  }

  // Through the projection, then through the gates.
  void unproject(Index s) {
    const Index P = stream_.shape.output;
    for_groups(blocks_, false, [&](Index first, Index n) {
      product<S>(
          stream_.active(s), Runs{1, P, 0}, int(n), projection_panel(first), partial_,
          [&](Index b) -> const O* { return out_.output_of(stream_.row(s, b)); },
          [&](Index, T* acc) { memset(acc, 0, size_t(n * L) * sizeof(T)); },
          [&](Index b, const T* acc) { epilogue(s, b, first, n, acc); });
    });
  }

  // Columns of the input that an attention writes.
  Index context() const {
    if constexpr (kAsComputed<S>) return args_.attention ? args_.attention->of.context : 0;
    return 0;
  }

  // The gradients of position s's contexts, and what comes of them to the states before it.
  void unattend([[maybe_unused]] Index s, [[maybe_unused]] Barrier& barrier) {
    if constexpr (kAsComputed<S>) {
      if (!args_.attention) return;
      for_groups(contexts_, s % 2 != 0, [&](Index first, Index n) {
        product<S>(
            stream_.active(s), fed_runs(), int(n), context_panel(first), partial_,
            [&](Index b) -> const O* { return out_.gates_of(stream_.row(s, b)) + Cell::x_first * L; },
            [&](Index b, T* acc) {
              const T* outer = args_.attention->dx;
              if (outer) outer += stream_.row(s, b) * stream_.shape.input + stream_.shape.input - context();
              for (Index i = 0; i < n; ++i) {
                const Index at = (first + i) * L;
                store(acc + i * L, outer ? load<V>(outer + at, lanes_in<T>(first + i, context())) : V{});
              }
            },
            [&](Index b, const T* acc) {
              T* const dcontext = args_.attention->dcontexts + stream_.row(s, b) * context();
              for (Index i = 0; i < n; ++i)
                store(dcontext + (first + i) * L, load<V>(acc + i * L), lanes_in<T>(first + i, context()));
            });
      });
      barrier.wait();
      attention_.run(stream_, s, [&](Index b) { return carry_h_ + b * outputs_units_; });
      barrier.wait();
    }
  }

  RNNFUSED_HD void epilogue([[maybe_unused]] Index s, [[maybe_unused]] Index b, [[maybe_unused]] Index first,
                            [[maybe_unused]] Index n, [[maybe_unused]] const T* dh) {
    if constexpr (!kStaged<Cell>) {
      const SequenceShape& shape = stream_.shape;
      const bool projected = projects<Cell>(stream_.shape);
      const Index row = stream_.row(s, b);
      const S* h_prev = history_.output(row);
      const S* c_prev = has_cell_state ? history_.cell(row) : nullptr;
      const S* h = args_.y[row];
      T* carry_h = carry_h_ + b * outputs_units_;
      T* carry_c = has_cell_state ? carry_c_ + b * tape_.units : nullptr;
      O* gates = out_.gates_of(row);
      // Rebuilt gates are where their gradients will be.
      const S* tape = tape_.keeps_gates(row) ? tape_.gates_of(row) : nullptr;
      for (Index i = 0; i < n; ++i) {
        const Index block = first + i, at = block * L, lanes = lanes_in<T>(block, shape.hidden);
        V taped[A], prev[Cell::states]{}, next[Cell::states]{}, dnext[Cell::states], dgates[A],
            dprev[Cell::states];
        const auto read_taped = [&](const auto* from) {
          for (int a = 0; a < Cell::taped; ++a) taped[a] = load<V>(from + (block * A + a) * L);
        };
        tape ? read_taped(tape) : read_taped(gates);
        if (!projected) {
          prev[0] = load<V>(h_prev + at, lanes);
          next[0] = load<V>(h + at, lanes);
        }
        dnext[0] = load<V>(dh + i * L);
        if constexpr (has_cell_state) {
          prev[1] = load<V>(c_prev + at, lanes);
          next[1] = load<V>(tape_.cell_of(row) + at);
          dnext[1] = load<V>(carry_c + at);
          if (args_.dcells.data) dnext[1] = dnext[1] + load<V>(args_.dcells[row] + at, lanes);
        }
        Cell::backward(taped, prev, next, dnext, dgates, dprev);
        // Lanes beyond the last unit are zero whatever the padding held: the product of the next step sums
        // over them.
        for (int a = 0; a < A; ++a) store(gates + (block * A + a) * L, first_lanes(dgates[a], lanes));
        if (!projected) store(carry_h + at, first_lanes(dprev[0], lanes));
        if constexpr (has_cell_state) store(carry_c + at, first_lanes(dprev[1], lanes));
      }
    }
  }

  RNNFUSED_HD void store_initial_output(Index b, Index first, Index n, const T* acc) const {
    T* const out = args_.dinitial[0].find(stream_.sequence(b));
    for (Index i = 0; out && i < n; ++i) {
      V sum = load<V>(acc + i * L);
      if constexpr (kStaged<Cell>) sum = stage_.handed_back(b, first + i, sum);
      store(out + (first + i) * L, sum, lanes_in<T>(first + i, stream_.shape.output));
    }
  }

  void store_initial(int state, Index units, Range blocks, Index b, const T* from) const {
    T* const out = args_.dinitial[state].find(stream_.sequence(b));
    for (Index block = blocks.first; out && block < blocks.last; ++block) {
      store(out + block * L, load<V>(from + block * L), lanes_in<T>(block, units));
    }
  }

  // Rows of the batch that no step holds: their states went straight through.
  void store_never_active(Index from) const {
    Index ever = from;
    for (Index s = 0; s < stream_.shape.steps; ++s)
      ever = stream_.active(s) > ever ? stream_.active(s) : ever;
    for (Index b = ever; b < stream_.batch(); ++b) {
      store_initial(0, stream_.shape.output, outputs_, b, carry_h_ + b * outputs_units_);
      if (has_cell_state) store_initial(1, stream_.shape.hidden, blocks_, b, carry_c_ + b * tape_.units);
      if constexpr (kStaged<Cell>) stage_.store_initial_cell(b);
    }
  }

  const BackwardArgs<S>& args_;
  const GateGradients<Cell, S>& out_;
  const History<Cell, S>& history_;
  Stream stream_;
  Tape<Cell, S> tape_;
  Heads<Cell, T> heads_;
  Range blocks_{}, outputs_{}, contexts_{};
  Index outputs_units_ = 0;
  T *carry_h_ = nullptr, *carry_c_ = nullptr;  // shared by the members, each its own lanes
  T* partial_ = nullptr;
  T* of_heads_ = nullptr;  // sums over some of the gates [rows, kGroup, lanes]
  PackedWeights<S> recurrent_panels_;
  O *projection_panels_ = nullptr, *context_panels_ = nullptr;
  std::conditional_t<kAsComputed<S>, AttentionBackward<T>, std::nullptr_t> attention_{};
  std::conditional_t<kStaged<Cell>, VariedBackward<T>, std::nullptr_t> stage_{};
};

// What all threads do together for one direction, before and after its recurrence.
template <class Cell, class S>
struct BesideRecurrence {
  GateRebuild<Cell, S> rebuild;
  ParameterGradients<Cell, S> parameters;

  BesideRecurrence(const BackwardArgs<S>& args, const GateGradients<Cell, S>& gates,
                   const History<Cell, S>& history, int thread, int threads, Arena& arena)
      : rebuild(args, gates, history, thread, threads, arena),
        parameters(args, gates, history, thread, threads, arena) {}
};

// Scratch of a whole call: the gate gradients, the order of the rows, a slab of every group for its
// recurrence, and what is done beside it.
template <class Cell, class S>
struct BackwardMemory {
  // Whether all threads work on the same direction, and so can take the gradients of a chunk of steps as soon
  // as the recurrence has left it. Otherwise they wait for the end of all recurrences.
  bool by_chunks;
  GateGradients<Cell, S> gates[kMaxDirections];
  History<Cell, S> history[kMaxDirections];
  Index slab = 0, total = 0;
  char *slabs = nullptr, *beside = nullptr;

  BackwardMemory(const LayerGradient<S>& layer, const Plan& plan, void* base)
      : by_chunks(plan.groups == plan.shards && (layer.directions == 1 || plan.groups == 1) &&
                  layer.backward[0].shape.rows() > kGradientRows) {
    Arena arena(base);
    for (int d = 0; d < layer.directions; ++d) {
      const BackwardArgs<S>& args = layer.backward[d];
      history[d] = {args, arena};
      gates[d] = by_chunks && d > 0
                     ? gates[0]
                     : GateGradients<Cell, S>(args.shape, !by_chunks,
                                              Tape<Cell, S>::rebuilds_gates_if(args.recompute), arena);
    }
    for (int group = 0; group < plan.groups; ++group) {
      for_streams(plan, 1, layer.directions, layer.backward[0].shape, group, [&](const StreamPlace& at) {
        Arena counter(nullptr);
        BackwardStream<Cell, S>(layer.backward[at.direction], gates[at.direction], history[at.direction],
                                at.shard, 0, plan.members, counter);
        slab = counter.used() > slab ? counter.used() : slab;
      });
    }
    Index after = 0;
    for (int d = 0; d < layer.directions; ++d) {
      Arena counter(nullptr);
      BesideRecurrence<Cell, S>(layer.backward[d], gates[d], history[d], 0, plan.threads(), counter);
      after = counter.used() > after ? counter.used() : after;
    }
    slabs = static_cast<char*>(base) + (base ? arena.used() : 0);
    const Index recurrence = slab * plan.groups;
    beside = by_chunks && base ? slabs + recurrence : slabs;
    total = arena.used() + (by_chunks ? recurrence + after : recurrence > after ? recurrence : after);
  }
};

template <class Cell, class S>
Index backward_scratch(const LayerGradient<S>& layer, const Plan& plan) {
  return BackwardMemory<Cell, S>(layer, plan, nullptr).total;
}

// One thread's part of a call.
template <class Cell, class S>
class BackwardCall {
 public:
  BackwardCall(const LayerGradient<S>& layer, const Team& team, int thread)
      : layer_(layer),
        plan_(team.plan),
        all_(*team.all),
        members_(team.group[thread / team.plan.members]),
        memory_(layer, team.plan, team.scratch),
        thread_(thread) {}

  void run() {
    for (int d = 0; d < layer_.directions; ++d) {
      if (thread_ == d % plan_.threads()) memory_.history[d].find();
    }
    all_.wait();
    if (memory_.by_chunks) {
      for_my_streams([&](int direction, const Shard& shard) { chunk_by_chunk(direction, shard); });
      return;
    }
    for (int d = 0; d < layer_.directions; ++d) {
      if (rebuilds(d)) rebuild(d);
    }
    for_my_streams([&](int direction, const Shard& shard) { recurrence(direction, shard); });
    for (int d = 0; d < layer_.directions; ++d) {
      all_.wait();  // all gate gradients are there, and the memory is free
      parameter_gradients(d);
    }
  }

 private:
  int group() const { return thread_ / plan_.members; }

  template <class Body>
  void for_my_streams(Body body) const {
    for_streams(plan_, 1, layer_.directions, layer_.backward[0].shape, group(),
                [&](const StreamPlace& at) { body(at.direction, at.shard); });
  }

  BackwardStream<Cell, S> stream(int direction, const Shard& shard) const {
    Arena arena(memory_.slabs + memory_.slab * group());
    return {layer_.backward[direction],
            memory_.gates[direction],
            memory_.history[direction],
            shard,
            thread_ % plan_.members,
            plan_.members,
            arena};
  }

  BesideRecurrence<Cell, S> beside(int direction) const {
    Arena arena(memory_.beside);
    return {layer_.backward[direction],
            memory_.gates[direction],
            memory_.history[direction],
            thread_,
            plan_.threads(),
            arena};
  }

  bool rebuilds(int direction) const {
    return Tape<Cell, S>::rebuilds_gates_if(layer_.backward[direction].recompute);
  }

  void chunk_by_chunk(int direction, const Shard& shard) {
    const SequenceShape& shape = layer_.backward[direction].shape;
    auto recurrence = stream(direction, shard);
    auto others = beside(direction);
    recurrence.prepare();
    others.parameters.prepare();
    all_.wait();
    Index rebuilt = first_kept(shape, rebuilds(direction));  // first position of those whose gates are there
    for_chunks(shape, [&](Range positions) {
      memory_.gates[direction].enter(rows_of(shape, positions));
      if (rebuilds(direction) && positions.first < rebuilt) {
        // Two chunks at once: the weights are packed for them and thrown away.
        const Index end = rebuilt;
        rebuilt = chunk_before(shape, positions.first).first;
        others.rebuild.run(rows_of(shape, {rebuilt, end}));
        all_.wait();
      }
      recurrence.run(positions, members_);
      all_.wait();
      others.parameters.add(positions, all_);
      all_.wait();  // the next chunk takes this one's place
    });
    others.parameters.finish();
    all_.wait();  // the memory is free for the other direction, which adds to dx
  }

  void rebuild(int direction) {
    auto others = beside(direction);
    const SequenceShape& shape = layer_.backward[direction].shape;
    others.rebuild.run(rows_of(shape, {0, first_kept(shape, true)}));
    all_.wait();  // the gates are there, and the memory is free
  }

  void recurrence(int direction, const Shard& shard) {
    auto recurrence = stream(direction, shard);
    recurrence.prepare();
    members_.wait();
    recurrence.run({0, layer_.backward[direction].shape.steps}, members_);
    members_.wait();  // the slab is free for the next stream
  }

  void parameter_gradients(int direction) {
    auto others = beside(direction);
    others.parameters.prepare();
    for_chunks(layer_.backward[direction].shape,
               [&](Range positions) { others.parameters.add(positions, all_); });
    others.parameters.finish();
  }

  const LayerGradient<S>& layer_;
  const Plan& plan_;
  Barrier &all_, &members_;
  BackwardMemory<Cell, S> memory_;  // this thread's view of it
  int thread_;
};

template <class Cell, class S>
void backward(const LayerGradient<S>& layer, const Team& team, int thread) {
  BackwardCall<Cell, S>(layer, team, thread).run();
}

// What the drivers offer for a cell: quantised weights have no gradients.
template <class Cell, class S>
constexpr CellKernels<S> kernels_of() {
  CellKernels<S> kernels{&Tape<Cell, Stored<S>>::size,
                         &packed_bytes<Cell, S>,
                         &pack<Cell, S>,
                         &forward_scratch<Cell, S>,
                         &forward<Cell, S>,
                         nullptr,
                         nullptr};
  if constexpr (!kQuantized<S>) {
    kernels.backward_scratch = &backward_scratch<Cell, S>;
    kernels.backward = &backward<Cell, S>;
  }
  return kernels;
}

}  // namespace rnnfused::RNNFUSED_ISA
