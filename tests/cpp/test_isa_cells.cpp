// The cells by themselves, and the drivers with a cell whose every value is an integer: layout, order of time
// and masks are then right or wrong, never close.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "cells/all.h"
#include "core/dual.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "sequence_case.h"

namespace rnnfused::RNNFUSED_ISA {
namespace {

using test::Problem, test::Run, test::PlainRun, test::Unit, test::UnitGradient, test::PlainCell;

// ---- The maths of every cell in the registry

template <class V, class Cell>
struct Inputs {
  V acc[Cell::accumulators], prev[Cell::states], dnext[Cell::states];
};

template <class V, class Cell>
struct Outputs {
  V next[Cell::states], tape[Cell::accumulators], dacc[Cell::accumulators], dprev[Cell::states];
};

template <class V, class Cell>
Outputs<V, Cell> evaluate(const Inputs<V, Cell>& in) {
  Outputs<V, Cell> out{};
  Cell::forward(in.acc, in.prev, out.next, out.tape);
  Cell::backward(out.tape, in.prev, out.next, in.dnext, out.dacc, out.dprev);
  return out;
}

// Scalars from -1.5 to 1.5 in every lane.
template <class V, class Cell>
Inputs<V, Cell> random_inputs(std::mt19937& random) {
  using S = ScalarOf<V>;
  Inputs<V, Cell> in;
  S lanes[sizeof(in) / sizeof(S)];
  for (S& lane : lanes) lane = S(3 * (double(random()) / double(random.max())) - 1.5);
  std::memcpy(&in, lanes, sizeof(in));
  return in;
}

// What backward differentiates: the next states, weighted by their gradients.
template <class Cell>
double weighted(const Inputs<double, Cell>& in) {
  const Outputs<double, Cell> out = evaluate(in);
  double sum = 0;
  for (int s = 0; s < Cell::states; ++s) sum += in.dnext[s] * out.next[s];
  return sum;
}

// `input` is a member of `in`.
template <class Cell>
double slope(const Inputs<double, Cell>& in, double& input) {
  constexpr double step = 1e-5;
  const double at = input;
  input = at + step;
  const double above = weighted(in);
  input = at - step;
  const double below = weighted(in);
  input = at;
  return (above - below) / (2 * step);
}

template <class Cell>
void check_gradients() {
  constexpr double tolerance = 1e-9;  // step^2 of truncation and 1e-16 / step of rounding, with room
  std::mt19937 random(1);
  for (int trial = 0; trial < 200; ++trial) {
    Inputs<double, Cell> in = random_inputs<double, Cell>(random);
    const Outputs<double, Cell> out = evaluate(in);
    for (int a = 0; a < Cell::accumulators; ++a) {
      CAPTURE(a);
      REQUIRE(std::fabs(slope(in, in.acc[a]) - out.dacc[a]) < tolerance);
    }
    for (int s = 0; s < Cell::states; ++s) {
      CAPTURE(s);
      REQUIRE(std::fabs(slope(in, in.prev[s]) - out.dprev[s]) < tolerance);
    }
  }
}

// Lane `lane` of a struct whose members are all vectors of T.
template <class T, class To, class From>
To lane_of(const From& vectors, int lane) {
  static_assert(sizeof(From) == sizeof(To) * kLanes<T>);
  T all[sizeof(From) / sizeof(T)], some[sizeof(To) / sizeof(T)];
  std::memcpy(all, &vectors, sizeof(From));
  for (size_t i = 0; i < sizeof(To) / sizeof(T); ++i) some[i] = all[i * kLanes<T> + size_t(lane)];
  To out;
  std::memcpy(&out, some, sizeof(To));
  return out;
}

// V is a vector of T and One a lane of it, or both are dual numbers of these.
template <class T, class V, class One, class Cell>
void check_lanes() {
  std::mt19937 random(2);
  for (int trial = 0; trial < 100; ++trial) {
    const Inputs<V, Cell> in = random_inputs<V, Cell>(random);
    const Outputs<V, Cell> out = evaluate(in);
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const auto got = lane_of<T, Outputs<One, Cell>>(out, lane);
      const auto alone = evaluate(lane_of<T, Inputs<One, Cell>>(in, lane));
      REQUIRE(std::memcmp(&got, &alone, sizeof(got)) == 0);
    }
  }
}

template <class T, class Cell>
void check_lanes() {
  check_lanes<T, Native<T>, T, Cell>();
  check_lanes<T, Dual<Native<T>>, Dual<T>, Cell>();
}

// Values, and tangents against differences along the direction that the inputs' tangents are.
template <class Cell>
void check_tangents() {
  using Point = Inputs<double, Cell>;
  using Result = Outputs<double, Cell>;
  constexpr double step = 1e-5, tolerance = 1e-9;  // as above
  constexpr size_t inputs = sizeof(Point) / sizeof(double), outputs = sizeof(Result) / sizeof(double);
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const auto dual = random_inputs<Dual<double>, Cell>(random);
    Dual<double> at[inputs];
    std::memcpy(at, &dual, sizeof(at));
    const auto moved = [&](double by) {
      double point[inputs];
      for (size_t i = 0; i < inputs; ++i) point[i] = at[i].value + by * at[i].tangent;
      Point in;
      std::memcpy(&in, point, sizeof(in));
      return evaluate(in);
    };
    const Outputs<Dual<double>, Cell> result = evaluate(dual);
    const Result here = moved(0), above = moved(step), below = moved(-step);
    Dual<double> got[outputs];
    double value[outputs], high[outputs], low[outputs];
    std::memcpy(got, &result, sizeof(got));
    std::memcpy(value, &here, sizeof(value));
    std::memcpy(high, &above, sizeof(high));
    std::memcpy(low, &below, sizeof(low));
    for (size_t i = 0; i < outputs; ++i) {
      CAPTURE(i);
      REQUIRE(got[i].value == value[i]);
      REQUIRE(std::fabs(got[i].tangent - (high[i] - low[i]) / (2 * step)) < tolerance);
    }
  }
}

TEST_CASE("the gradients of every cell are those of finite differences"){
#define RNNFUSED_CHECK(name, Cell) \
  {                                \
    INFO(#name);                   \
    check_gradients<Cell>();       \
  }
    RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK
}

TEST_CASE("the tangents of every cell are those of finite differences"){
#define RNNFUSED_CHECK(name, Cell) \
  {                                \
    INFO(#name);                   \
    check_tangents<Cell>();        \
  }
    RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK
}

TEST_CASE("a lane of a vector has the bits of a scalar") {
#define RNNFUSED_CHECK(name, Cell) \
  {                                \
    INFO(#name);                   \
    check_lanes<float, Cell>();    \
    check_lanes<double, Cell>();   \
  }
  RNNFUSED_CELLS(RNNFUSED_CHECK)
#undef RNNFUSED_CHECK
}

// ---- The drivers, with a probe

// Two gates, of which one has its two products apart, and a tape. Every value that a cell is given, forward
// and backward, adds to something that comes out; "gradients" are sums like the rest. A projected cell is not
// given h.
template <bool reads_h>
struct Probe {
  static constexpr int states = 2, gates = 2, accumulators = 3;
  static constexpr int x_first = 0, h_first = 1;
  static constexpr int gate_of[] = {1, 0, 1};
  static constexpr int taped = 2;

  template <class V>
  static RNNFUSED_HD void forward(const V (&acc)[3], const V (&prev)[2], V (&next)[2], V* tape) {
    next[0] = acc[1] + acc[2];
    if (reads_h) next[0] = next[0] + prev[0];
    next[1] = prev[1] + acc[0] - acc[2];
    tape[0] = acc[1], tape[1] = acc[0] - acc[2];
  }

  template <class V>
  static RNNFUSED_HD void backward(const V* tape, const V (&prev)[2], const V (&next)[2], const V (&dnext)[2],
                                   V (&dacc)[3], V (&dprev)[2]) {
    dacc[0] = dnext[1] + tape[0];
    dacc[1] = dnext[0] - prev[1];
    dacc[2] = dnext[0] + next[1] + tape[1];
    dprev[0] = dnext[0];
    dprev[1] = dnext[1] - tape[0];
    if (reads_h) {
      dacc[1] = dacc[1] + prev[0];
      dacc[2] = dacc[2] - next[0];
      dprev[0] = dprev[0] + prev[0];
    }
  }
};

// The same by torch's gates: gate 0 sums its products, gate 1 keeps them apart.
void plain_forward(Unit& u) {
  u.next[0] = u.x[0] + u.h[0] + u.h[1] + u.prev[0];
  u.next[1] = u.prev[1] + u.x[1] - u.h[1];
}

template <bool reads_h>
UnitGradient plain_backward(const Unit& u, const double (&dnext)[kMaxStates]) {
  const double gate = u.x[0] + u.h[0], apart = u.x[1] - u.h[1];
  const double d0 = dnext[0] - u.prev[1] + (reads_h ? u.prev[0] : 0);
  const double dh1 = dnext[0] + u.next[1] + apart - (reads_h ? u.next[0] : 0);
  return {{d0, dnext[1] + gate}, {d0, dh1}, {dnext[0] + (reads_h ? u.prev[0] : 0), dnext[1] - gate}};
}

template <class T, bool reads_h>
void check_probe(const test::Sizes& sizes, const test::Variant& variant, const Plan& plan) {
  using Cell = Probe<reads_h>;
  constexpr CellKernels<T> kernels = kernels_of<Cell, T>();
  CAPTURE(test::text(sizes, variant, plan));
  const Problem<T> problem(sizes, variant, Cell::gates, Cell::states, true, 5);
  const PlainRun<T> expected(PlainCell{Cell::gates, Cell::states, plain_forward, plain_backward<reads_h>},
                             problem);
  for (const auto& [name, values] : expected.values()) {
    for (double value : values)
      REQUIRE(std::fabs(value) < (sizeof(T) == 4 ? 1 << 22 : 1e15));  // exact, and its sums too
  }
  Run<T> training(kernels, problem, plan), inference(kernels, problem, plan);
  training.forward(true).backward({});
  inference.forward(false);
  REQUIRE(training.intact());
  REQUIRE(inference.intact());
  REQUIRE(training.values().size() == expected.values().size());
  REQUIRE(test::first_difference(training.values(), expected.values()) == "");
  REQUIRE(test::first_difference(inference.values(), expected.values()) == "");
}

TEST_CASE_TEMPLATE("a probe comes out exactly", T, float, double) {
  const Index L = kLanes<T>;
  for (const Index hidden : {Index(1), L + 1, 3 * L, 5 * L + 2}) {
    for (const Index batch : {1, 3, 8}) {
      for (const bool ragged : {false, true}) {
        for (const int directions : {1, 2}) {
          check_probe<T, true>({3, batch, 5, hidden, hidden}, {ragged, directions}, {});
          const Index output = (hidden + 1) / 2;
          if (hidden > 1)
            check_probe<T, false>({3, batch, 5, hidden, output}, {ragged, directions, ragged}, {});
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("a probe comes out exactly under every plan", T, float, double) {
  const Index L = kLanes<T>;
  for (const Plan& plan : test::plans()) {
    check_probe<T, true>({3, 5, L + 1, 4 * L + 1, 4 * L + 1}, {true, 2}, plan);
    check_probe<T, false>({3, 5, L + 1, 2 * L + 1, L + 1}, {true, 2}, plan);
  }
}

// Runs of gate gradients are cut between one another when a panel outgrows the cache.
TEST_CASE_TEMPLATE("a probe whose products are cut comes out exactly", T, float, double) {
  const Index L = kLanes<T>;
  check_probe<T, true>({2, 3, L == 1 ? 20000 : 40 * L * L, 2, 2}, {}, {});
  check_probe<T, true>({1, 3, 2, L == 1 ? 5 : 450, L == 1 ? 5 : 450}, {}, {});
}

}  // namespace
}  // namespace rnnfused::RNNFUSED_ISA
