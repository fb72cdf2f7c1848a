// The drivers through the table of kernels, as callers use them: against a plain implementation, and the same
// bits whatever the plan.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

#include "cpu/dispatch.h"
#include "plain_cells.h"

namespace rnnfused::test {
namespace {

// Where a sum that is near zero comes out on its other side, a rectifier's gradient has nothing of the exact
// one.
template <class S>
Values comparable(const Tested& tested, Values values) {
  if (!kNarrow<S> || tested.id != CellId::rnn_relu) return values;
  for (auto it = values.begin(); it != values.end();)
    it = it->first[0] == 'd' ? values.erase(it) : std::next(it);
  return values;
}

template <class S>
Values check_plan(const Tested& tested, const Problem<S>& problem, const Plan& plan, const Values& expected,
                  double tolerance) {
  const CellKernels<S>& kernels = cpu::kernels().of<S>().cells[int(tested.id)];
  CAPTURE(text(problem.sizes, problem.variant, plan));
  Run<S> training(kernels, problem, plan), inference(kernels, problem, plan);
  inference.forward(false);
  if constexpr (kQuantized<S>) {
    REQUIRE(inference.intact());
    REQUIRE(inference.values().size() == expected.size());
    REQUIRE(first_difference(inference.values(), expected, tolerance) == "");
    return inference.values();
  } else {
    training.forward(true).backward({});
  }
  REQUIRE(training.intact());
  REQUIRE(inference.intact());
  const Values found = tolerance > 0 ? comparable<S>(tested, training.values()) : training.values();
  REQUIRE(found.size() == expected.size());
  REQUIRE(first_difference(found, expected, tolerance) == "");
  REQUIRE(first_difference(inference.values(), training.values()) == "");
  return training.values();
}

template <class S>
void check(const Tested& tested, const Sizes& sizes, const Variant& variant) {
  const Problem<S> problem(sizes, variant, tested.plain.gates, tested.plain.states, false, 1);
  const Values expected = comparable<S>(tested, PlainRun<S>(tested.plain, problem).values());
  const Values serial = check_plan<S>(tested, problem, {}, expected, kTolerance<S>);
  for (int i = 0; i < kPlansPerCase; ++i) check_plan<S>(tested, problem, next_plan(), serial, 0);

  if (kQuantized<S>) return;
  // Rebuilt gates have the bits of forward's.
  Variant rebuilt = variant;
  rebuilt.recompute = true;
  const Problem<S> leaner(sizes, rebuilt, tested.plain.gates, tested.plain.states, false, 1);
  check_plan<S>(tested, leaner, {}, serial, 0);
  check_plan<S>(tested, leaner, next_plan(), serial, 0);
}

template <class S>
void check_all_cells(const Sizes& sizes, const Variant& variant) {
  for (const Tested& tested : kTested) {
    CAPTURE(cpu::kernels().info(tested.id).name);
    if (sizes.output == sizes.hidden || tested.id == CellId::lstm) check<S>(tested, sizes, variant);
  }
}

TEST_CASE_TEMPLATE("hidden sizes around whole vectors and tiles", S, float, double, BFloat16, Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  for (Index hidden : {Index(1), L - 1, L, L + 1, 2 * L + 1, 4 * L, 5 * L - 1, 9 * L + 1}) {
    if (hidden < 1) continue;
    check_all_cells<S>({3, 3, 5, hidden, hidden}, {});
    check_all_cells<S>({4, 5, 3, hidden, hidden}, {true, 2});
  }
}

TEST_CASE_TEMPLATE("batch sizes around tiles", S, float, double, BFloat16, Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  for (Index batch : {1, 2, 4, 5, 6, 7, 8, 9, 13}) {
    check_all_cells<S>({2, batch, 3, L + 2, L + 2}, {});
    check_all_cells<S>({6, batch, 3, L + 2, L + 2}, {true, 2});
  }
}

TEST_CASE_TEMPLATE("input sizes around whole vectors", S, float, double, BFloat16, Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  for (Index input : {Index(1), L - 1, L, L + 1, 4 * L + 1, 7 * L}) {
    if (input < 1) continue;
    check_all_cells<S>({3, 4, input, 6, 6}, {false, 2});
  }
}

TEST_CASE_TEMPLATE("ragged, without initial states, without biases", S, float, double, BFloat16, Half, Int8) {
  for (int bits = 0; bits < 16; ++bits) {
    const Variant variant{(bits & 1) != 0, bits & 2 ? 2 : 1, (bits & 4) != 0, (bits & 8) != 0};
    check_all_cells<S>({9, 6, 4, 11, 11}, variant);
  }
}

TEST_CASE_TEMPLATE("projection", S, float, double, BFloat16, Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  for (Index output : {Index(1), L - 1, L, L + 1, 3 * L - 1, 5 * L + 1}) {
    if (output < 1) continue;
    check_all_cells<S>({3, 3, 5, 6 * L + 3, output}, {false, 2});
    check_all_cells<S>({5, 4, 3, 6 * L + 3, output}, {true, 2, false, false});
  }
}

TEST_CASE_TEMPLATE("nothing to do", S, float, double, BFloat16, Half, Int8) {
  for (const Variant& variant : {Variant{}, Variant{true, 2}}) {
    check_all_cells<S>({3, 0, 4, 5, 5}, variant);
    check_all_cells<S>({0, 3, 4, 5, 5}, variant);
    check_all_cells<S>({0, 3, 4, 5, 2}, variant);
    check_all_cells<S>({3, 2, 0, 5, 5}, variant);
    check_all_cells<S>({3, 2, 0, 0, 0}, variant);
  }
}

// More than is in one go: rows than a chunk of the input projection, k than a panel in cache, units than a
// pass of the gradients of the weights.
TEST_CASE_TEMPLATE("beyond the blocking", S, float, double, BFloat16, Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  check_all_cells<S>({45, 20, 2, 3, 3}, {true, 1});
  check_all_cells<S>({2, 3, 2, 210, 210}, {});
  check_all_cells<S>({2, 2, L == 1 ? 9000 : 3000, 8, 8}, {});
  if (L > 1) check_all_cells<S>({2, 5, 2, 360, 360}, {});
  // W_ih packed for each of two chunks, and its gradient taken in a sweep of its own.
  check<S>(kTested[2], {13, 30, 200, 128, 128}, {});
}

// Several chunks of steps in backward: whole steps of many rows, of few, and steps that are longer than a
// chunk.
TEST_CASE_TEMPLATE("chunks", S, float, double, BFloat16, Half) {
  const Index L = cpu::kernels().of<S>().lanes;
  for (const bool ragged : {false, true}) {
    check_all_cells<S>({9, 90, 3, L + 1, L + 1}, {ragged, 2});
    check_all_cells<S>({400, 2, 3, L + 1, L + 1}, {ragged, 1});
    check_all_cells<S>({3, 300, L + 1, 3, 3}, {ragged, 1});
    check<S>(kTested[2], {9, 90, 3, L + 1, 3}, {ragged, 2});
  }
}

// Layers over one another, each one's input the output of the one before it, and their results one call after
// the other.
template <class S>
struct StackCase {
  const CellKernels<S>& kernels;
  std::vector<Problem<S>> problems;
  std::vector<Values> expected;

  StackCase(const Tested& tested, const Sizes& sizes, const Variant& variant, int layers)
      : kernels(cpu::kernels().of<S>().cells[int(tested.id)]) {
    for (int l = 0; l < layers; ++l) {
      Sizes own = sizes;
      if (l > 0) own.input = sizes.output * variant.directions;
      problems.emplace_back(own, variant, tested.plain.gates, tested.plain.states, false, unsigned(10 + l));
      if (l > 0) {
        const std::vector<double>& below = expected.back().at("y");
        problems.back().x.clear();
        for (const double value : below) problems.back().x.push_back(Format<Stored<S>>::nearest(value));
      }
      expected.push_back(Run<S>(kernels, problems.back(), {}).forward(!kQuantized<S>).values());
    }
  }

  // Calls body with a Run of every layer, and compares what it leaves in them.
  template <class Body>
  void check(const Plan& plan, Body body) const {
    CAPTURE(text(problems[0].sizes, problems[0].variant, plan));
    std::vector<std::unique_ptr<Run<S>>> runs;
    std::vector<Run<S>*> stack;
    for (const Problem<S>& problem : problems) {
      runs.push_back(std::make_unique<Run<S>>(kernels, problem, plan));
      stack.push_back(runs.back().get());
    }
    body(stack);
    for (size_t l = 0; l < runs.size(); ++l) {
      CAPTURE(l);
      REQUIRE(runs[l]->intact());
      REQUIRE(first_difference(runs[l]->values(), expected[l]) == "");
    }
  }
};

template <class S>
void check_stack(const Tested& tested, const Sizes& sizes, const Variant& variant, int layers,
                 const std::vector<Plan>& under) {
  const StackCase<S> stack(tested, sizes, variant, layers);
  for (const Plan& plan : under) {
    for (const bool training : {false, !kQuantized<S>})
      stack.check(plan, [&](const auto& runs) { Run<S>::run_stack(runs, training); });
  }
}

TEST_CASE_TEMPLATE("a stack gives the bits of its layers one after the other", S, float, double, BFloat16,
                   Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  const Tested &lstm = kTested[2], &gru = kTested[3];
  for (const bool ragged : {false, true}) {
    check_stack<S>(lstm, {40, 3, 5, 2 * L + 1, 2 * L + 1}, {ragged}, 3, waves());
    check_stack<S>(lstm, {40, 3, 5, 2 * L + 1, 3}, {ragged}, 2, waves());
    check_stack<S>(gru, {9, 20, 4, L + 1, L + 1}, {ragged, 1, false, false}, 4, waves());
    check_stack<S>(gru, {7, 4, 4, L + 1, L + 1}, {ragged, 2}, 3, plans());
  }
  check_stack<S>(lstm, {1, 1, 5, L, L}, {}, 3, plans());
  check_stack<S>(gru, {0, 2, 5, L, L}, {}, 2, waves());
}

TEST_CASE_TEMPLATE("packed weights that stay give the bits of those that are packed anew", S, float, double,
                   BFloat16, Half, Int8) {
  const Index L = cpu::kernels().of<S>().lanes;
  const StackCase<S> cases[] = {
      {kTested[0], {3, 3, 5, 9 * L + 1, 9 * L + 1}, {}, 1},
      {kTested[2], {10, 1, 5, 2 * L + 1, 2 * L + 1}, {}, 2},
      {kTested[2], {40, 3, 5, 2 * L + 1, 3}, {true}, 2},
      {kTested[3], {7, 4, L, L + 1, L + 1}, {true, 2}, 2},
  };
  for (const StackCase<S>& stack : cases) {
    std::vector<Plan> under = plans();
    if (stack.problems[0].variant.directions == 1) under.insert(under.end(), waves().begin(), waves().end());
    for (const Plan& plan : under) {
      std::unique_ptr<Poisoned<unsigned char>> packed;
      for (int call = 0; call < 3; ++call)
        stack.check(plan, [&](const auto& runs) { Run<S>::run_packed(runs, packed); });
    }
  }
}

TEST_CASE_TEMPLATE("what is not asked for changes nothing else", S, float, double, BFloat16, Half) {
  for (const Tested& tested : kTested) {
    for (const Index output : {9, 7}) {
      if (output == 7 && tested.id != CellId::lstm) continue;
      const CellKernels<S>& kernels = cpu::kernels().of<S>().cells[int(tested.id)];
      const Variant variant{true, 2};
      const Problem<S> problem({5, 4, 3, 9, output}, variant, tested.plain.gates, tested.plain.states, false,
                               2);
      const Plan plan{2, 1, 1};
      Run<S> all(kernels, problem, plan);
      all.forward(true).backward({});
      for (int bits = 0; bits < 16; ++bits) {
        const Asked asked{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
        Run<S> some(kernels, problem, plan);
        some.forward(true).backward(asked);
        CAPTURE(bits);
        REQUIRE(some.intact());
        REQUIRE(first_difference(some.values(), all.values()) == "");
      }
    }
  }
}

TEST_CASE_TEMPLATE("gradients that are not given are zero", S, float, double, BFloat16, Half) {
  for (const Tested& tested : kTested) {
    const CellKernels<S>& kernels = cpu::kernels().of<S>().cells[int(tested.id)];
    for (int bits = 0; bits < 3; ++bits) {
      Asked asked;
      asked.dy = (bits & 1) != 0, asked.dfinal = (bits & 2) != 0;
      Problem<S> problem({5, 4, 3, 9, 9}, {true, 2}, tested.plain.gates, tested.plain.states, false, 3);
      Run<S> absent(kernels, problem, {});
      absent.forward(true).backward(asked);
      if (!asked.dy) problem.dy.assign(problem.dy.size(), S{});
      for (DirectionData<S>& data : problem.directions) {
        for (auto& d : data.dfinal) {
          if (!asked.dfinal) d.assign(d.size(), 0);
        }
      }
      Run<S> zero(kernels, problem, {});
      zero.forward(true).backward({});
      CAPTURE(bits);
      REQUIRE(absent.intact());
      REQUIRE(first_difference(absent.values(), zero.values(), kTolerance<S>) == "");
    }
  }
}

TEST_CASE_TEMPLATE("the chosen plan gives the bits of one thread, at any number of threads", S, float, double,
                   BFloat16, Half) {
  const Problem<S> problem({12, 24, 40, 130, 130}, {true, 2}, 4, 2, false, 4);
  const CellKernels<S>& kernels = cpu::kernels().of<S>().cells[int(CellId::lstm)];
  Run<S> serial(kernels, problem, {});
  serial.forward(true).backward({});
  for (int threads : {1, 2, 4}) {
    for (const bool backward : {false, true}) {
      const Plan plan = cpu::plan<S>(CellId::lstm, problem.shape(0), 1, 2, threads, backward);
      CAPTURE(text(problem.sizes, problem.variant, plan));
      CHECK(plan.threads() <= threads);
      Run<S> run(kernels, problem, plan);
      run.forward(true).backward({});
      REQUIRE(first_difference(run.values(), serial.values()) == "");
    }
  }
}

TEST_CASE("the table in use is the one that was asked for") {
  const char* wanted = std::getenv("RNNFUSED_ISA");
  if (wanted) CHECK(std::string(cpu::kernels().isa) == wanted);
  const std::vector<std::string> names = cpu::available_isas();
  CHECK(std::count(names.begin(), names.end(), cpu::kernels().isa) == 1);
}

}  // namespace
}  // namespace rnnfused::test
