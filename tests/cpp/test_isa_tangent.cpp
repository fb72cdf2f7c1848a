// The elementwise kernels of a step against the cell's maths, unit by unit: bit for bit, since a lane has the
// bits of a scalar.
#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cells/all.h"
#include "cpu/tangent.h"

namespace rnnfused::RNNFUSED_ISA {
namespace {

constexpr Index kGap = 3;  // between rows: nothing may be written there

// [rows, units] of values and as many of tangents; and what they were before a kernel ran.
template <class T>
struct Matrix {
  Index rows, units;
  std::vector<T> now, before;

  Matrix(Index row_count, Index unit_count, std::mt19937& random)
      : rows(row_count), units(unit_count), now(size_t(2 * row_count * (unit_count + kGap))) {
    for (T& v : now) v = T(3 * (double(random()) / double(random.max())) - 1.5);
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
  bool as_expected() const { return std::memcmp(now.data(), before.data(), now.size() * sizeof(T)) == 0; }
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
  void check(Matrix<T>& matrix) const { REQUIRE(matrix.as_expected()); }
};

template <class Cell, class T>
void check_forward(Step<Cell, T> step, int threads) {
  constexpr int A = Cell::accumulators, S = Cell::states;
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

template <class Cell, class T>
void check_backward(Step<Cell, T> step, int threads) {
  constexpr int A = Cell::accumulators, S = Cell::states;
  TangentBackward<T> args{step.rows, step.hidden, step.tangents, step.gates.view(), step.previous(), {},
                          {},        {}};
  for (int s = 0; s < S; ++s) {
    args.next[s] = step.next[size_t(s)].template view<const T>();
    args.dstates[s] = step.dstates[size_t(s)].view();
  }
  args.outer = step.outer.template view<const T>();
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
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("a step's kernels do what the cell does", T, float, double){
#define RNNFUSED_CHECK(name, Cell) \
  {                                \
    INFO(#name);                   \
    check_steps<Cell, T>();        \
  }
    RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK
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
  args.outer = given.outer.template view<const T>();
  tangent_kernels_of<Lstm, T>().backward(args, 1, 0);

  args.gates = absent.gates.view();
  args.outer = {};
  args.dstates[0] = {};
  args.dstates[1] = absent.dstates[1].view();
  tangent_kernels_of<Lstm, T>().backward(args, 1, 0);
  REQUIRE(absent.gates.now == given.gates.now);
  REQUIRE(absent.dstates[1].now == given.dstates[1].now);
}

}  // namespace
}  // namespace rnnfused::RNNFUSED_ISA
