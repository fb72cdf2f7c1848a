// The elementwise kernels of a step against the cell's maths, unit by unit: bit for bit, since a lane has the
// bits of a scalar.
#include <doctest/doctest.h>

#include <limits>
#include <random>
#include <vector>

#include "cells/all.h"
#include "cpu/tangent.h"

namespace rnnfused::RNNFUSED_ISA {
namespace {

constexpr Index kGap = 3;  // between rows: nothing may be written there

// From -1.5 to 1.5. Sums of products of such numbers are exact, in whatever order.
template <class T>
T eighths(std::mt19937& random) {
  return T(int(random() % 25) - 12) / 8;
}

// [rows, units] of values and as many of tangents; and what they were before a kernel ran.
template <class T>
struct Matrix {
  Index rows, units;
  std::vector<T> now, before;

  Matrix(Index row_count, Index unit_count, std::mt19937& random)
      : rows(row_count), units(unit_count), now(size_t(2 * row_count * (unit_count + kGap))) {
    for (T& v : now) v = eighths<T>(random);
    before = now;
  }
  Index stride() const { return units + kGap; }
  template <class To = T>
  DualRows<To> view() {
    return {now.data(), now.data() + rows * stride(), stride()};
  }
  Dual<T> was(Index row, Index unit) const {
    const T* at = before.data() + row * stride() + unit;
    return {*at, at[rows * stride()]};
  }
  // Notes what should be there.
  void expect(Index row, Index unit, Dual<T> v, bool tangents) {
    T* at = before.data() + row * stride() + unit;
    *at = v.value;
    if (tangents) at[rows * stride()] = v.tangent;
  }
  bool as_expected() const { return now == before; }
};

// All that the two kernels read and write, and which of the states start at this step.
template <class Cell, class T>
struct Step {
  static constexpr int A = Cell::accumulators, S = Cell::states;
  Index rows, hidden, count;
  bool tangents, has_initial;
  std::mt19937 random{7};
  Matrix<T> gates{rows, A * hidden, random}, outer{rows, hidden, random};
  std::vector<Matrix<T>> prev, initial, next, dstates;

  Step(Index row_count, Index unit_count, Index continued, bool duals, bool initial_given)
      : rows(row_count), hidden(unit_count), count(continued), tangents(duals), has_initial(initial_given) {
    for (auto* states : {&prev, &initial, &next, &dstates}) {
      for (int s = 0; s < S; ++s) states->emplace_back(rows, hidden, random);
    }
  }

  PreviousStates<T> previous() {
    PreviousStates<T> states{count, {}, {}};
    for (int s = 0; s < S; ++s) {
      states.before[s] = prev[size_t(s)].template view<const T>();
      if (has_initial) states.initial[s] = initial[size_t(s)].template view<const T>();
    }
    return states;
  }
  void load(Index row, Index unit, Dual<T> (&out)[S]) const {
    for (int s = 0; s < S; ++s) {
      out[s] = row < count ? prev[size_t(s)].was(row, unit) : Dual<T>{};
      if (row >= count && has_initial) out[s] = initial[size_t(s)].was(row, unit);
    }
  }
  template <class Body>
  void for_units(Body body) {
    for (Index row = 0; row < rows; ++row) {
      for (Index unit = 0; unit < hidden; ++unit) body(row, unit);
    }
  }
  // A cell that tapes nothing is given the values of its next states.
  void give_values() {
    if (Cell::taped > 0) return;
    for_units([&](Index row, Index unit) {
      T acc[A], before[S], after[S];
      Dual<T> from[S];
      load(row, unit, from);
      for (int a = 0; a < A; ++a) acc[a] = gates.was(row, a * hidden + unit).value;
      for (int s = 0; s < S; ++s) before[s] = from[s].value;
      Cell::forward(acc, before, after, static_cast<T*>(nullptr));
      for (int s = 0; s < S; ++s) {
        next[size_t(s)].expect(row, unit, {after[s], 0}, false);
        next[size_t(s)].now = next[size_t(s)].before;
      }
    });
  }
  void check(Matrix<T>& matrix) const { REQUIRE(matrix.as_expected()); }
};

template <class Cell, class T>
void check_forward(Step<Cell, T> step, int threads) {
  constexpr int A = Cell::accumulators, S = Cell::states;
  step.give_values();
  TangentForward<T> args{step.rows, step.hidden, step.tangents, step.gates.view(), step.previous(), {}};
  for (int s = 0; s < S; ++s) args.next[s] = step.next[size_t(s)].view();
  for (int t = 0; t < threads; ++t) tangent_kernels_of<Cell, T>().forward(args, threads, t);
  step.for_units([&](Index row, Index unit) {
    Dual<T> acc[A], prev[S], next[S], tape[A];
    for (int a = 0; a < A; ++a) acc[a] = step.gates.was(row, a * step.hidden + unit);
    step.load(row, unit, prev);
    Cell::forward(acc, prev, next, tape);
    for (int a = 0; a < Cell::taped; ++a)
      step.gates.expect(row, a * step.hidden + unit, tape[a], step.tangents);
    for (int s = 0; s < S; ++s) step.next[size_t(s)].expect(row, unit, next[s], step.tangents);
  });
  step.check(step.gates);
  for (auto& next : step.next) step.check(next);
}

// With what forward taped of the values, the tangents are the gradients of the next states times the tangents
// of all that the step was given.
template <class Cell, class T>
void check_forward_by_tape(Step<Cell, T> step, int threads) {
  constexpr int A = Cell::accumulators, S = Cell::states;
  constexpr Index L = kLanes<T>;
  const Index units = blocks_of<T>(step.hidden) * L;
  std::vector<T> gates(size_t(step.rows * units * A)), cell(size_t(step.rows * units));
  std::vector<Matrix<T>> expected = step.next;
  step.for_units([&](Index row, Index unit) {
    T acc[A], moved[A], before[S], after[S], tape[A]{};
    Dual<T> prev[S], next[S];
    step.load(row, unit, prev);
    for (int s = 0; s < S; ++s) before[s] = prev[s].value;
    for (int a = 0; a < A; ++a) {
      const Dual<T> sum = step.gates.was(row, a * step.hidden + unit);
      acc[a] = sum.value, moved[a] = sum.tangent;
    }
    Cell::forward(acc, before, after, tape);
    for (int a = 0; a < Cell::taped; ++a)
      gates[size_t((row * units + unit / L * L) * A + a * L + unit % L)] = tape[a];
    cell[size_t(row * units + unit)] = after[S - 1];
    for (int s = 0; s < S; ++s) next[s].value = after[s];
    tangents_by_gradients<Cell>(tape, moved, prev, next);
    for (int s = 0; s < S; ++s) expected[size_t(s)].expect(row, unit, next[s], true);
    step.next[0].now[size_t(row * step.next[0].stride() + unit)] = after[0];
  });
  TangentForward<T> args{step.rows, step.hidden, true, step.gates.view(), step.previous(), {}};
  args.gates.value = nullptr;
  args.taped = {gates.data(), cell.data(), units};
  for (int s = 0; s < S; ++s) args.next[s] = step.next[size_t(s)].view();
  for (int t = 0; t < threads; ++t) tangent_kernels_of<Cell, T>().forward(args, threads, t);
  step.check(step.gates);
  for (size_t s = 0; s < expected.size(); ++s) REQUIRE(step.next[s].now == expected[s].before);
}

template <class Cell, class T>
void check_backward(Step<Cell, T> step, int threads) {
  constexpr int A = Cell::accumulators, S = Cell::states;
  TangentBackward<T> args{step.rows, step.hidden, step.tangents, step.gates.view(), step.previous(), {},
                          {},        {}};
  for (int s = 0; s < S; ++s) {
    args.next[s] = step.next[size_t(s)].template view<const T>();
    args.dstates[s] = step.dstates[size_t(s)].view();
  }
  args.outer[0] = step.outer.template view<const T>();
  for (int t = 0; t < threads; ++t) tangent_kernels_of<Cell, T>().backward(args, threads, t);
  step.for_units([&](Index row, Index unit) {
    Dual<T> tape[A], prev[S], next[S], dnext[S], dacc[A], dprev[S];
    for (int a = 0; a < Cell::taped; ++a) tape[a] = step.gates.was(row, a * step.hidden + unit);
    step.load(row, unit, prev);
    for (int s = 0; s < S; ++s) {
      next[s] = step.next[size_t(s)].was(row, unit);
      dnext[s] = step.dstates[size_t(s)].was(row, unit);
    }
    dnext[0] = dnext[0] + step.outer.was(row, unit);
    Cell::backward(tape, prev, next, dnext, dacc, dprev);
    for (int a = 0; a < A; ++a) step.gates.expect(row, a * step.hidden + unit, dacc[a], step.tangents);
    for (int s = 0; s < S; ++s) step.dstates[size_t(s)].expect(row, unit, dprev[s], step.tangents);
  });
  step.check(step.gates);
  for (auto& states : step.dstates) step.check(states);
}

template <class Cell, class T>
void check_steps() {
  const Index L = kLanes<T>;
  for (const Index hidden : {Index(1), L - 1, L, 3 * L + 1}) {
    for (const Index count : {0, 2, 5}) {
      for (const bool tangents : {true, false}) {
        for (const int threads : {1, 3}) {
          CAPTURE(hidden);
          CAPTURE(count);
          CAPTURE(tangents);
          CAPTURE(threads);
          const Step<Cell, T> step(5, hidden, count, tangents, count != 0);
          check_forward(step, threads);
          check_backward(step, threads);
          if (tangents) check_forward_by_tape(step, threads);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("a step's kernels do what the cell does", T, float, double) {
#define RNNFUSED_CHECK(name, Cell) \
  {                                \
    INFO(#name);                   \
    check_steps<Cell, T>();        \
  }
  RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK
}

// W_hh and, behind it, its tangents [G * H, H] each.
template <class Cell, class T>
struct Recurrent {
  Index hidden, size{Cell::gates * hidden * hidden};
  std::vector<T> all;

  Recurrent(Index units, std::mt19937& random) : hidden(units), all(size_t(2 * size)) {
    for (T& v : all) v = eighths<T>(random);
  }
  RecurrentWeights<T> weights(bool tangents) const {
    return {hidden, all.data(), tangents ? all.data() + size : nullptr};
  }
  // Sum over the columns of W, or of W'.
  T forward(bool tangents, int g, Index unit, const T* h) const {
    const T* row =
        all.data() + (tangents ? size : 0) + (Cell::gate_of[Cell::h_first + g] * hidden + unit) * hidden;
    T sum = 0;
    for (Index k = 0; k < hidden; ++k) sum += row[k] * h[k];
    return sum;
  }
  // Sum over its rows.
  T backward(bool tangents, Index unit, const T* gates) const {
    T sum = 0;
    for (int g = 0; g < Cell::gates; ++g) {
      const T* column =
          all.data() + (tangents ? size : 0) + Cell::gate_of[Cell::h_first + g] * hidden * hidden + unit;
      for (Index k = 0; k < hidden; ++k) sum += gates[(Cell::h_first + g) * hidden + k] * column[k * hidden];
    }
    return sum;
  }
};

// A step whose kernel multiplies is one whose accumulators hold the product already.
template <class Cell, class T>
void check_forward_product(Step<Cell, T> step, int threads) {
  const Index H = step.hidden;
  const Recurrent<Cell, T> w(H, step.random);
  std::vector<T> packed(size_t(packed_forward<Cell, T>(H)));
  REQUIRE(packed.size() > 0);
  pack_forward<Cell>(w.weights(false), packed.data());
  Step<Cell, T> there = step;
  for (Index row = 0; row < step.rows; ++row) {
    const bool starts = row >= step.count;
    if (starts && !step.has_initial) continue;
    const auto& h = (starts ? step.initial : step.prev)[0];
    const T* before = h.now.data() + (h.rows + row) * h.stride();
    T* acc = there.gates.now.data() + (step.rows + row) * there.gates.stride();
    for (int g = 0; g < Cell::gates; ++g) {
      for (Index unit = 0; unit < H; ++unit)
        acc[(Cell::h_first + g) * H + unit] += w.forward(false, g, unit, before);
    }
  }
  const auto run = [&](Step<Cell, T>& on, const T* recurrent) {
    TangentForward<T> args{on.rows, H, true, on.gates.view(), on.previous(), {}};
    args.recurrent = recurrent;
    for (int s = 0; s < Cell::states; ++s) args.next[s] = on.next[size_t(s)].view();
    for (int t = 0; t < threads; ++t) tangent_kernels_of<Cell, T>().forward(args, threads, t);
  };
  run(step, packed.data());
  run(there, nullptr);
  // Sums that are not taped stay in registers.
  if (Cell::taped == Cell::accumulators) REQUIRE(step.gates.now == there.gates.now);
  for (size_t s = 0; s < step.next.size(); ++s) REQUIRE(step.next[s].now == there.next[s].now);
}

template <class Cell, class T>
void check_backward_product(Step<Cell, T> step, bool weights_have_tangents, Index after_rows, int threads) {
  const Index H = step.hidden;
  const Recurrent<Cell, T> w(H, step.random);
  Matrix<T> after(after_rows, Cell::accumulators * H, step.random);
  std::vector<T> packed(size_t(packed_backward<Cell, T>(H, weights_have_tangents)));
  REQUIRE(packed.size() > 0);
  pack_backward<Cell>(w.weights(weights_have_tangents), packed.data());
  Step<Cell, T> there = step;
  Matrix<T>& dh = there.dstates[0];
  for (Index row = 0; row < after_rows; ++row) {
    const T* value = after.now.data() + row * after.stride();
    const T* tangent = value + after_rows * after.stride();
    for (Index unit = 0; unit < H; ++unit) {
      dh.now[size_t(row * dh.stride() + unit)] += w.backward(false, unit, value);
      if (!step.tangents) continue;
      T sum = w.backward(false, unit, tangent);
      if (weights_have_tangents) sum += w.backward(true, unit, value);
      dh.now[size_t((dh.rows + row) * dh.stride() + unit)] += sum;
    }
  }
  const auto run = [&](Step<Cell, T>& on, Index rows, const T* recurrent) {
    TangentBackward<T> args{rows, H, on.tangents, on.gates.view(), on.previous(), {}, {}, {}};
    for (int s = 0; s < Cell::states; ++s) {
      args.next[s] = on.next[size_t(s)].template view<const T>();
      args.dstates[s] = on.dstates[size_t(s)].view();
    }
    args.outer[0] = on.outer.template view<const T>();
    args.recurrent = recurrent;
    args.weights_have_tangents = weights_have_tangents;
    args.after = after.template view<const T>();
    args.after_rows = recurrent ? after_rows : 0;
    for (int t = 0; t < threads; ++t) tangent_kernels_of<Cell, T>().backward(args, threads, t);
  };
  const Index rows = step.count;  // the others are done with, but for the product
  run(step, rows, packed.data());
  run(there, rows, nullptr);
  REQUIRE(step.gates.now == there.gates.now);
  for (size_t s = 0; s < step.dstates.size(); ++s) REQUIRE(step.dstates[s].now == there.dstates[s].now);
}

template <class Cell, class T>
void check_products() {
  const Index L = kLanes<T>;
  for (const Index hidden : {Index(1), L, 2 * L + 1, 5 * L - 1}) {
    for (const Index count : {0, 3, 7}) {
      for (const int threads : {1, 2, 3}) {
        CAPTURE(hidden);
        CAPTURE(count);
        CAPTURE(threads);
        check_forward_product(Step<Cell, T>(7, hidden, count, true, false), threads);
        check_forward_product(Step<Cell, T>(7, hidden, count, true, true), threads);
        for (const Index after : {0, 2, 7}) {
          CAPTURE(after);
          check_backward_product(Step<Cell, T>(7, hidden, count, false, true), false, after, threads);
          check_backward_product(Step<Cell, T>(7, hidden, count, true, true), false, after, threads);
          check_backward_product(Step<Cell, T>(7, hidden, count, true, true), true, after, threads);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("a step's kernels multiply", T, float, double){
#define RNNFUSED_CHECK(name, Cell) \
  {                                \
    INFO(#name);                   \
    check_products<Cell, T>();     \
  }
    RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK
}

TEST_CASE("products of large layers are left to others") {
  CHECK(packed_forward<Lstm, float>(1 << 16) == 0);
  CHECK(packed_backward<Lstm, float>(1 << 16, false) == 0);
}

// What is read and has no data is zero; what is written and has none is not.
TEST_CASE_TEMPLATE("a step's kernels go without what is absent", T, float, double) {
  using Case = Step<Lstm, T>;
  Case given(2, kLanes<T> + 1, 2, true, false), absent = given;
  TangentBackward<T> args{2, given.hidden, true, given.gates.view(), given.previous(), {}, {}, {}};
  args.dstates[0] = given.dstates[0].view();
  args.dstates[1] = given.dstates[1].view();
  for (T& v : given.dstates[0].now) v = 0;
  for (T& v : given.outer.now) v = 0;
  args.outer[0] = given.outer.template view<const T>();
  tangent_kernels_of<Lstm, T>().backward(args, 1, 0);

  args.gates = absent.gates.view();
  args.outer[0] = {};
  args.dstates[0] = {};
  args.dstates[1] = absent.dstates[1].view();
  tangent_kernels_of<Lstm, T>().backward(args, 1, 0);
  REQUIRE(absent.gates.now == given.gates.now);
  REQUIRE(absent.dstates[1].now == given.dstates[1].now);
}

}  // namespace
}  // namespace rnnfused::RNNFUSED_ISA
