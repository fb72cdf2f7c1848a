// The steps of an attention (core/attention.h) between the steps of a layer. The members of a group share the
// sequences: each scores and weighs for its own, so that they meet once more in a step, and see every weight.
#pragma once

#include <cstring>
#include <limits>

#include "core/attention.h"
#include "core/math.h"
#include "core/stream.h"
#include "cpu/tile.h"

namespace rnnfused::RNNFUSED_ISA {

template <class T>
class AttentionStep {
 protected:
  using V = Native<T>;
  static constexpr Index L = kLanes<T>;
  static constexpr Index kGroup = 4;  // vectors of a product's columns

 public:
  AttentionStep() = default;
  // summed, columns: of the product with W_q, of which all members read the panels.
  AttentionStep(const Attention<T>& of, Index batch, Index summed, Index columns, int member, int members,
                Arena& arena)
      : of_(of), columns_(columns), member_(member), members_(members), terms_{1, summed, 0} {
    panels_ = arena.take<T>(padded<T>(columns) * summed);
    for (int m = 0; m < members; ++m) {
      T* partial = arena.take<T>(partial_scalars<T>(batch, terms_, int(kGroup)));
      T* scores = arena.take<T>(padded<T>(of.source));
      if (m == member) partial_ = partial, scores_ = scores;
    }
  }

 protected:
  // Every group of blocks of the product's columns: first block, number of blocks, panel.
  template <class Body>
  void for_groups(Index first, Index step, Body body) const {
    const Index blocks = blocks_of<T>(columns_);
    for (Index block = first * kGroup; block < blocks; block += step * kGroup)
      body(block, blocks - block < kGroup ? blocks - block : kGroup, panels_ + block * L * terms_.length);
  }
  template <class Body>
  void for_own_groups(Body body) const {
    for_groups(member_, members_, body);
  }

  Range own_rows(Index rows) const { return share(rows, members_, member_); }
  bool is_there(Index sequence, Index s) const { return !of_.mask || of_.mask[sequence * of_.source + s]; }

  Attention<T> of_{};
  Index columns_ = 0;
  int member_ = 0, members_ = 1;
  Runs terms_{};
  T *panels_ = nullptr, *partial_ = nullptr, *scores_ = nullptr;
};

template <class T>
class AttentionForward : AttentionStep<T> {
  using Base = AttentionStep<T>;
  using Base::L, Base::of_, Base::terms_, Base::scores_;
  using typename Base::V;

 public:
  AttentionForward() = default;
  AttentionForward(const Attention<T>& of, const Stream& stream, int member, int members, Arena& arena)
      : Base(of, stream.batch(), stream.shape.hidden, of.size, member, members, arena),
        first_column_(stream.shape.input - of.context),
        stride_(stream.shape.input) {}

  // This member's part; all meet after it.
  void pack() const {
    static constexpr int only[] = {0};
    this->for_own_groups([&](Index block, Index n, T* panel) {
      pack_gates(of_.query, of_.size, terms_.length, terms_.length, 1, only, block, n, panel);
    });
  }

  // The contexts of the sequences of position s whose state before it is h(b).
  template <class StateOf>
  void run(const Stream& stream, Index s, StateOf h) const {
    const Range own = this->own_rows(stream.active(s));
    this->for_groups(0, 1, [&](Index block, Index n, const T* panel) {
      product<T>(
          own.size(), terms_, int(n), panel, this->partial_, [&](Index i) { return h(own.first + i); },
          [&](Index, T* acc) { memset(acc, 0, size_t(n * L) * sizeof *acc); },
          [&](Index i, const T* acc) {
            T* const query = of_.queries + stream.row(s, own.first + i) * of_.size + block * L;
            for (Index j = 0; j < n; ++j)
              store(query + j * L, load<V>(acc + j * L), lanes_in<T>(block + j, of_.size));
          });
    });
    for (Index b = own.first; b < own.last; ++b) {
      const Index row = stream.row(s, b), sequence = stream.sequence(b);
      const bool all = score(sequence, of_.queries + row * of_.size);
      weigh(all, of_.weights + row * of_.source);
      sum_values(sequence, of_.weights + row * of_.source, of_.x + row * stride_ + first_column_);
    }
  }

 private:
  // -inf where there is nothing. Returns whether every step is there.
  bool score(Index sequence, const T* query) const {
    bool all = true;
    const T* key = of_.keys + sequence * of_.source * of_.size;
    for (Index s = 0; s < of_.source; s += L) {
      V sums[L] = {};
      const Index lanes = lanes_in<T>(s / L, of_.source);
      for (Index i = 0; i < lanes; ++i, key += of_.size) {
        for (Index a = 0; a < of_.size; a += L) {
          const Index n = lanes_in<T>(a / L, of_.size);
          const V t = tanh(load<V>(query + a, n) + load<V>(key + a, n));
          sums[i] = fma(load<V>(of_.score + a, n), t, sums[i]);
        }
      }
      store(scores_ + s, lane_sums<T>(sums));
      for (Index i = 0; i < L; ++i) {
        const bool is_there = i < lanes && this->is_there(sequence, s + i);
        if (!is_there) scores_[s + i] = -std::numeric_limits<T>::infinity();
        all = all && (is_there || i >= lanes);
      }
    }
    return all;
  }

  // The softmax of the scores; zeros where no step is there.
  void weigh(bool all, T* weights) const {
    T most = -std::numeric_limits<T>::infinity();
    for (Index s = 0; s < of_.source; ++s) most = scores_[s] > most ? scores_[s] : most;
    // Where nothing is there the largest is -inf, too, and has to leave zeros; else it leaves NaN, as
    // torch's.
    const T above = all || most > -std::numeric_limits<T>::infinity() ? most : T(0);
    V sum{};
    for (Index s = 0; s < of_.source; s += L) {
      const V e = exp(load<V>(scores_ + s) - above);
      store(scores_ + s, e);
      sum = sum + e;
    }
    const T total = sum_of_lanes(sum);
    const T scale = total == T(0) ? T(0) : T(1) / total;
    for (Index s = 0; s < of_.source; s += L)
      store(weights + s, load<V>(scores_ + s) * scale, lanes_in<T>(s / L, of_.source));
  }

  void sum_values(Index sequence, const T* weights, T* context) const {
    constexpr Index kVectors = 8;
    const T* const values = of_.values + sequence * of_.source * of_.context;
    for (Index v = 0; v < of_.context; v += kVectors * L) {
      V sums[kVectors] = {};
      const Index vectors =
          blocks_of<T>(of_.context - v) < kVectors ? blocks_of<T>(of_.context - v) : kVectors;
      for (Index s = 0; s < of_.source; ++s) {
        const T* const value = values + s * of_.context + v;
        const V weight = broadcast<V>(weights[s]);
        for (Index j = 0; j < vectors; ++j)
          sums[j] = fma(weight, load<V>(value + j * L, lanes_in<T>(v / L + j, of_.context)), sums[j]);
      }
      for (Index j = 0; j < vectors; ++j)
        store(context + v + j * L, sums[j], lanes_in<T>(v / L + j, of_.context));
    }
  }

  Index first_column_ = 0, stride_ = 0;
};

template <class T>
class AttentionBackward : AttentionStep<T> {
  using Base = AttentionStep<T>;
  using Base::L, Base::of_, Base::terms_, Base::scores_;
  using typename Base::V;

 public:
  AttentionBackward() = default;
  AttentionBackward(const AttentionGradient<T>& args, const Stream& stream, int member, int members,
                    Arena& arena)
      : Base(args.of, stream.batch(), args.of.size, stream.shape.hidden, member, members, arena),
        args_(args) {}

  // This member's part; all meet after it.
  void pack() const {
    this->for_own_groups([&](Index block, Index n, T* panel) {
      pack_columns(of_.query, this->columns_, terms_.length, this->columns_, block, n, panel);
    });
  }

  // Position s, the gradients of whose contexts are there: adds to the gradient of the states before it,
  // carry(b).
  template <class CarryOf>
  void run(const Stream& stream, Index s, CarryOf carry) const {
    const Range own = this->own_rows(stream.active(s));
    for (Index b = own.first; b < own.last; ++b) unscore(stream.row(s, b), stream.sequence(b));
    this->for_groups(0, 1, [&](Index block, Index n, const T* panel) {
      const auto copy = [&](const T* from, T* to) { memcpy(to, from, size_t(n * L) * sizeof *to); };
      product<T>(
          own.size(), terms_, int(n), panel, this->partial_,
          [&](Index i) { return args_.dqueries + stream.row(s, own.first + i) * of_.size; },
          [&](Index i, T* acc) { copy(carry(own.first + i) + block * L, acc); },
          [&](Index i, const T* acc) { copy(acc, carry(own.first + i) + block * L); });
    });
  }

 private:
  void unscore(Index row, Index sequence) const {
    unweigh(row, sequence);
    const Index from = sequence * of_.source;
    const T *const query = of_.queries + row * of_.size, *key = of_.keys + from * of_.size;
    T *const dquery = args_.dqueries + row * of_.size, *dkey = args_.dkeys + from * of_.size;
    T* const dscore = args_.dscore + sequence * of_.size;
    memset(dquery, 0, size_t(of_.size) * sizeof *dquery);
    for (Index s = 0; s < of_.source; ++s, key += of_.size, dkey += of_.size) {
      if (!this->is_there(sequence, s)) continue;
      const V outer = broadcast<V>(scores_[s]);
      for (Index a = 0; a < of_.size; a += L) {
        const Index n = lanes_in<T>(a / L, of_.size);
        const V t = tanh(load<V>(query + a, n) + load<V>(key + a, n));
        const V inner = tanh_gradient(outer * load<V>(of_.score + a, n), t);
        store(dkey + a, load<V>(dkey + a, n) + inner, n);
        store(dquery + a, load<V>(dquery + a, n) + inner, n);
        store(dscore + a, fma(outer, t, load<V>(dscore + a, n)), n);
      }
    }
  }

  // The gradients of a row's scores.
  void unweigh(Index row, Index sequence) const {
    const T* const values = of_.values + sequence * of_.source * of_.context;
    const T *const weights = of_.weights + row * of_.source, *const dcontext =
                                                                 args_.dcontexts + row * of_.context;
    const T* const dweights = args_.dweights ? args_.dweights + row * of_.source : nullptr;
    V sum{};
    for (Index s = 0; s < of_.source; s += L) {
      const Index lanes = lanes_in<T>(s / L, of_.source);
      T products[L] = {};
      dots(values + s * of_.context, lanes, of_.context, dcontext, products);
      // What is asked of weights that are always zero reaches nothing, not even by zero times infinity.
      for (Index i = 0; i < lanes; ++i) {
        if (!this->is_there(sequence, s + i))
          products[i] = 0;
        else if (dweights)
          products[i] += dweights[s + i];
      }
      const V dweight = load<V>(products, lanes);
      store(scores_ + s, dweight);
      sum = fma(load<V>(weights + s, lanes), dweight, sum);
    }
    const T total = sum_of_lanes(sum);
    for (Index s = 0; s < of_.source; s += L)
      store(scores_ + s,
            load<V>(weights + s, lanes_in<T>(s / L, of_.source)) * (load<V>(scores_ + s) - total));
  }

  AttentionGradient<T> args_{};
};

}  // namespace rnnfused::RNNFUSED_ISA
