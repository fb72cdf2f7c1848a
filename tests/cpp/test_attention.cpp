// A layer that attends while it runs, through the table of kernels: against the equations, and the same bits
// whatever the plan.
#include <doctest/doctest.h>

#include "core/attention.h"
#include "cpu/dispatch.h"
#include "plain_cells.h"

namespace rnnfused::test {
namespace {

enum class Mask { none, lengths, scattered };

// The layer's, of whose input no column is a context's, and the attention's.
struct AttendedSizes {
  Index steps, batch, given, hidden;
  Index source, size, context;
};

template <class T>
struct AttendedProblem {
  AttendedSizes sizes;
  Mask mask;
  Problem<T> layer;
  std::vector<T> keys, values, query, score;
  std::vector<T> dx, dweights;  // from outside; empty where there are none

  AttendedProblem(const PlainCell& cell, const AttendedSizes& n, const Variant& variant, Mask m, bool outer)
      : sizes(n),
        mask(m),
        layer({n.steps, n.batch, n.given + n.context, n.hidden, n.hidden}, variant, cell.gates, cell.states,
              false, 6) {
    const auto make = [&](Index count, double scale) { return layer.template make<T>(count, scale); };
    keys = make(n.batch * n.source * n.size, 1), values = make(n.batch * n.source * n.context, 1);
    query = make(n.size * n.hidden, 1 / std::sqrt(double(n.hidden + 1))), score = make(n.size, 1);
    if (outer) dx = make(rows() * layer.sizes.input, 1), dweights = make(rows() * n.source, 1);
    // What nobody may read.
    for (Index row = 0; row < rows(); ++row) {
      for (Index v = 0; v < n.context; ++v) layer.x[size_t(row * layer.sizes.input + n.given + v)] = T(NAN);
      for (Index s = 0; s < n.source; ++s) {
        if (outer && !is_there(row % n.batch, s)) dweights[size_t(row * n.source + s)] = T(NAN);
      }
    }
    for (Index i = 0; i < Index(keys.size()); ++i) {
      const Index step = i / n.size;
      if (!is_there(step / n.source, step % n.source)) keys[size_t(i)] = T(NAN);
    }
  }

  Index rows() const { return layer.rows(); }

  // The first sequence has nothing to attend to under a mask of lengths.
  bool is_there(Index sequence, Index s) const {
    if (mask == Mask::lengths) return s < 3 * sequence;
    return mask == Mask::none || (7 * s + 3 * sequence) % 5 < 3;
  }
};

// ---- By the kernels

template <class T>
Poisoned<T> dense(const std::vector<T>& values, Index rows, Index columns) {
  return spread(values, rows, columns, 0);
}

// What gradients are added to.
constexpr int kBefore = 1;

template <class T>
class AttendedRun {
 public:
  AttendedRun(const CellKernels<T>& kernels, const AttendedProblem<T>& problem, const Plan& plan)
      : n_(problem.sizes),
        rows_(problem.rows()),
        keys_(dense(problem.keys, n_.batch * n_.source, n_.size)),
        values_(dense(problem.values, n_.batch * n_.source, n_.context)),
        query_(dense(problem.query, n_.size, n_.hidden)),
        score_(dense(problem.score, 1, n_.size)),
        dx_(outer(problem.dx, problem.layer.sizes.input)),
        dweights_(outer(problem.dweights, n_.source)),
        run_(kernels, problem.layer, plan, &args_) {
    for (Index i = 0; i < n_.batch * n_.source; ++i)
      mask_.data()[i] = problem.is_there(i / n_.source, i % n_.source);
    const auto given = [](const std::vector<T>& values, const Poisoned<T>& memory) {
      return values.empty() ? nullptr : memory.data();
    };
    args_ = {{n_.source, n_.size, n_.context, keys_.data(), values_.data(),
              problem.mask == Mask::none ? nullptr : mask_.data(), query_.data(), score_.data(),
              run_.x().data(), queries_.data(), weights_.data()},
             given(problem.dx, dx_),
             given(problem.dweights, dweights_),
             dkeys_.data(),
             dscore_.data(),
             dqueries_.data(),
             dcontexts_.data()};
  }

  AttendedRun& forward(bool training) {
    run_.forward(training);
    keep("x", run_.x()), keep("queries", queries_), keep("weights", weights_);
    return *this;
  }
  AttendedRun& backward() {
    run_.backward({});
    keep("dkeys", dkeys_), keep("dscore", dscore_);
    keep("dqueries", dqueries_), keep("dcontexts", dcontexts_);
    return *this;
  }

  // The layer's and the attention's.
  Values results() const {
    Values all = run_.values();
    all.insert(kept_.begin(), kept_.end());
    return all;
  }
  bool intact() const { return intact_ && run_.intact(); }

 private:
  Poisoned<T> outer(const std::vector<T>& values, Index columns) const {
    return dense(values, values.empty() ? 0 : rows_, columns);
  }
  Poisoned<T> begun(Index rows, Index columns) const {
    return dense(std::vector<T>(size_t(rows * columns), kBefore), rows, columns);
  }
  void keep(const char* name, const Poisoned<T>& memory) {
    kept_[name] = memory.values();
    intact_ &= memory.intact();
  }

  const AttendedSizes n_;
  const Index rows_;
  const Poisoned<T> keys_, values_, query_, score_, dx_, dweights_;
  const Poisoned<bool> mask_{n_.batch, n_.source};
  const Poisoned<T> queries_{rows_, n_.size}, weights_{rows_, n_.source};
  const Poisoned<T> dkeys_ = begun(n_.batch * n_.source, n_.size), dscore_ = begun(n_.batch, n_.size);
  const Poisoned<T> dqueries_{rows_, n_.size}, dcontexts_{rows_, n_.context};
  AttentionGradient<T> args_{};
  Run<T> run_;
  Values kept_;
  bool intact_ = true;
};

// ---- By the equations

template <class T>
class PlainAttention final : public PlainFeedback {
  using Row = std::vector<double>;

 public:
  explicit PlainAttention(const AttendedProblem<T>& problem) : p_(problem), n_(problem.sizes) {
    const auto fill = [&](const char* name, Index count, double with) {
      results_[name].assign(size_t(count), with);
    };
    fill("x", p_.rows() * p_.layer.sizes.input, 0), fill("weights", p_.rows() * n_.source, 0);
    fill("queries", p_.rows() * n_.size, 0), fill("dqueries", p_.rows() * n_.size, 0);
    fill("dcontexts", p_.rows() * n_.context, 0);
    fill("dkeys", n_.batch * n_.source * n_.size, kBefore), fill("dscore", n_.batch * n_.size, kBefore);
  }

  void forward(Index row, const Row& h, Row& x) override {
    double* const query = of("queries", row, n_.size);
    for (Index a = 0; a < n_.size; ++a) {
      for (Index k = 0; k < n_.hidden; ++k) query[a] += p_.query[size_t(a * n_.hidden + k)] * h[size_t(k)];
    }
    double* const weights = of("weights", row, n_.source);
    double total = 0;
    for_source(row, [&](Index s, Index step) {
      double score = 0;
      for (Index a = 0; a < n_.size; ++a) score += p_.score[size_t(a)] * hidden(query, step, a);
      total += weights[s] = std::exp(score);
    });
    std::fill(x.begin() + n_.given, x.end(), 0);
    for_source(row, [&](Index s, Index step) {
      weights[s] /= total;
      for (Index v = 0; v < n_.context; ++v) x[size_t(n_.given + v)] += weights[s] * value(step, v);
    });
    std::copy(x.begin(), x.end(), of("x", row, Index(x.size())));
  }

  void backward(Index row, const double* dx, Row& dh) override {
    const Index input = p_.layer.sizes.input;
    double* const dcontext = of("dcontexts", row, n_.context);
    for (Index v = 0; v < n_.context; ++v)
      dcontext[v] = dx[n_.given + v] + outer(p_.dx, row * input + n_.given + v);
    const double* const weights = of("weights", row, n_.source);
    Row dweights(static_cast<size_t>(n_.source));
    double mean = 0;
    for_source(row, [&](Index s, Index step) {
      double& dweight = dweights[size_t(s)] = outer(p_.dweights, row * n_.source + s);
      for (Index v = 0; v < n_.context; ++v) dweight += value(step, v) * dcontext[v];
      mean += weights[s] * dweight;
    });
    const double* const query = of("queries", row, n_.size);
    double* const dquery = of("dqueries", row, n_.size);
    double* const dscore = of("dscore", row % n_.batch, n_.size);
    for_source(row, [&](Index s, Index step) {
      const double d = weights[s] * (dweights[size_t(s)] - mean);
      for (Index a = 0; a < n_.size; ++a) {
        const double t = hidden(query, step, a), dsum = d * p_.score[size_t(a)] * tanh_slope(t);
        dscore[a] += d * t;
        dquery[a] += dsum;
        of("dkeys", step, n_.size)[a] += dsum;
      }
    });
    for (Index a = 0; a < n_.size; ++a) {
      for (Index k = 0; k < n_.hidden; ++k) dh[size_t(k)] += p_.query[size_t(a * n_.hidden + k)] * dquery[a];
    }
  }

  const Values& results() const { return results_; }

 private:
  double* of(const char* name, Index row, Index columns) { return results_[name].data() + row * columns; }
  static double outer(const std::vector<T>& given, Index i) { return given.empty() ? 0 : given[size_t(i)]; }
  double value(Index step, Index v) const { return p_.values[size_t(step * n_.context + v)]; }
  double hidden(const double* query, Index step, Index a) const {
    return std::tanh(query[a] + p_.keys[size_t(step * n_.size + a)]);
  }
  // The steps that there are of the source that the row attends to: each's number in it and among all.
  template <class Body>
  void for_source(Index row, Body body) const {
    const Index sequence = row % n_.batch;
    for (Index s = 0; s < n_.source; ++s) {
      if (p_.is_there(sequence, s)) body(s, sequence * n_.source + s);
    }
  }

  const AttendedProblem<T>& p_;
  const AttendedSizes n_;
  Values results_;
};

template <class T>
Values plain_results(const PlainCell& cell, const AttendedProblem<T>& problem) {
  PlainAttention<T> attention(problem);
  Values all = PlainRun<T>(cell, problem.layer, &attention).values();
  all.insert(attention.results().begin(), attention.results().end());
  std::vector<double> dx;
  for (Index row = 0; row < problem.rows(); ++row) {
    const auto first = all["dx"].begin() + row * problem.layer.sizes.input;
    dx.insert(dx.end(), first, first + problem.sizes.given);
  }
  all["dx"] = dx;
  return all;
}

// ---- Comparing

std::string text(const AttendedSizes& n, Mask mask, const Plan& plan) {
  return text(Sizes{n.steps, n.batch, n.given, n.hidden, n.hidden}, {}, plan) +
         ", S A V mask = " + list({n.source, n.size, n.context, Index(mask)});
}

template <class T>
Values check_plan(const Tested& tested, const AttendedProblem<T>& problem, const Plan& plan,
                  const Values& expected, double tolerance) {
  const CellKernels<T>& kernels = cpu::kernels().of<T>().cells[int(tested.id)];
  CAPTURE(text(problem.sizes, problem.mask, plan));
  AttendedRun<T> training(kernels, problem, plan), inference(kernels, problem, plan);
  training.forward(true).backward();
  inference.forward(false);
  REQUIRE(training.intact());
  REQUIRE(inference.intact());
  REQUIRE(training.results().size() == expected.size());
  REQUIRE(first_difference(training.results(), expected, tolerance) == "");
  REQUIRE(first_difference(inference.results(), training.results()) == "");
  return training.results();
}

template <class T>
void check_all_cells(const AttendedSizes& sizes, Mask mask, const std::vector<Plan>& under,
                     const Variant& variant = {}, bool outer = true) {
  for (const Tested& tested : kTested) {
    CAPTURE(cpu::kernels().info(tested.id).name);
    const AttendedProblem<T> problem(tested.plain, sizes, variant, mask, outer);
    const Values expected = plain_results(tested.plain, problem);
    const Values serial = check_plan(tested, problem, {}, expected, kTolerance<T>);
    for (const Plan& plan : under) check_plan(tested, problem, plan, serial, 0);
  }
}

TEST_CASE_TEMPLATE("attention: sizes around whole vectors and groups of them", T, float, double) {
  const Index L = cpu::kernels().of<T>().lanes;
  for (Index AttendedSizes::* const varied :
       {&AttendedSizes::given, &AttendedSizes::hidden, &AttendedSizes::source, &AttendedSizes::size,
        &AttendedSizes::context}) {
    for (const Index size : {Index(1), L - 1, L, L + 1, 4 * L + 1, 9 * L + 1}) {
      AttendedSizes sizes{3, 4, 3, 6, 7, 5, 4};
      sizes.*varied = size;
      if (size > 0) check_all_cells<T>(sizes, Mask::lengths, {next_plan()});
    }
  }
}

TEST_CASE_TEMPLATE("attention: the same bits under every plan", T, float, double) {
  const Index L = cpu::kernels().of<T>().lanes;
  std::vector<Plan> under = plans();
  under.insert(under.end(), {{1, 4, 1}, {3, 1, 3}, {4, 1, 4}});
  for (const Mask mask : {Mask::none, Mask::lengths, Mask::scattered})
    check_all_cells<T>({3, 5, L + 1, 5 * L + 1, L + 2, 9 * L + 1, 9 * L + 1}, mask, under);
  check_all_cells<T>({1, 1, 2, 9 * L + 1, 3, 2, 2}, Mask::none, under);
}

TEST_CASE_TEMPLATE("attention: several chunks of rows", T, float, double) {
  const Index L = cpu::kernels().of<T>().lanes;
  check_all_cells<T>({9, 90, 2, L + 1, 3, 2, 2}, Mask::scattered, {next_plan(), next_plan()});
  check_all_cells<T>({150, 4, 2, L + 1, 3, 2, 2}, Mask::lengths, {next_plan()});
  check_all_cells<T>({2, 300, 2, 3, 3, 2, 2}, Mask::scattered, {next_plan()});
}

TEST_CASE_TEMPLATE("attention: without initial states, biases, gradients from outside", T, float, double) {
  const AttendedSizes sizes{4, 5, 3, 6, 7, 5, 4};
  for (int bits = 0; bits < 8; ++bits) {
    const Variant variant{false, 1, (bits & 1) != 0, (bits & 2) != 0};
    check_all_cells<T>(sizes, Mask::scattered, {next_plan()}, variant, (bits & 4) != 0);
  }
}

TEST_CASE_TEMPLATE("attention: sizes of nothing", T, float, double) {
  for (Index AttendedSizes::* const varied :
       {&AttendedSizes::steps, &AttendedSizes::batch, &AttendedSizes::given, &AttendedSizes::source}) {
    AttendedSizes sizes{3, 4, 3, 6, 7, 5, 4};
    sizes.*varied = 0;
    check_all_cells<T>(sizes, Mask::none, {next_plan()});
  }
}

}  // namespace
}  // namespace rnnfused::test
