// Layers with options through the table of kernels: gradients against differences of what forward gives,
// float against double, and the same bits whatever the plan. That forward has the right equations the Python
// tests say (tests/test_varied.py).
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>

#include "cpu/dispatch.h"
#include "sequence_case.h"
#include "varied_options.h"

namespace rnnfused::test {
namespace {

constexpr double kNoClip = std::numeric_limits<double>::infinity();

struct Options : VariedOptions {
  double update_bias = 0, zoneout_h = 0, zoneout_c = 0, dropout = 0;
  double gate_clip = kNoClip, cell_clip = kNoClip;

  bool resets() const { return maths == Maths::reset_gru; }
  bool norms() const { return gate_norm != GateNorm::none; }
};

const Options kOptions[] = {
    {"norms of a tanh", Maths::rnn_tanh, 1, 1, GateNorm::separate},
    {"drawn relu", Maths::rnn_relu, 1, 1, GateNorm::none, CellNorm::none, false, true, 0, 0.3, 0, 0.4},
    {"peepholes", Maths::lstm, 4, 2, GateNorm::none, CellNorm::none, true, false, 0, 0, 0, 0, 0.9, 0.6},
    {"coupled", Maths::coupled_lstm, 3, 2, GateNorm::joint, CellNorm::output, true},
    {"drawn LSTM", Maths::lstm, 4, 2, GateNorm::separate, CellNorm::carried, true, true, 0, 0.3, 0.5, 0.4},
    {"means", Maths::lstm, 4, 2, GateNorm::separate, CellNorm::output, false, false, 0, 0.3, 0.5, 0.4},
    {"GRU", Maths::gru, 3, 1, GateNorm::separate, CellNorm::none, false, true, 0, 0.2, 0, 0.4, 1.1},
    {"reset before", Maths::reset_gru, 3, 1, GateNorm::none, CellNorm::none, false, true, 0, 0.2, 0, 0.4},
    {"update gate", Maths::update_gru, 3, 1, GateNorm::joint, CellNorm::none, false, false, -1, 0.2},
};

// Everything that is differentiated, by name and in double, and outer gradients.
struct VariedCase {
  Options options;
  Sizes sizes;
  Variant variant;
  double grad_clip = kNoClip;
  Problem<double> rows;  // rows, and their outer gradients
  Values inputs, outer;
  std::vector<Index> numbers;

  VariedCase(const Options& o, Index steps, Index batch, Index input, Index hidden, const Variant& v)
      : options(o),
        sizes{steps, batch, input, hidden, hidden},
        variant(v),
        rows(sizes, v, o.gates, o.states, false, 3) {
    const auto make = [&](const std::string& name, Index count, double scale, double around = 0) {
      std::vector<double>& values = inputs[name] = rows.make<double>(count, scale);
      for (double& value : values) value = double(float(value + around));
    };
    make("x", rows.rows() * input, 1);
    for (int d = 0; d < v.directions; ++d) {
      const auto of = [&](const char* what, int state = -1) { return Run<double>::named(what, d, state); };
      const Index G = o.gates * hidden;
      make(of("w_ih"), G * input, 1 / std::sqrt(double(input))), make(of("w_hh"), G * hidden, 0.4);
      if (v.biases) make(of("b_ih"), G, 0.5), make(of("b_hh"), G, 0.5);
      if (o.peephole) make(of("peephole"), (o.gates - 1) * hidden, 0.5);
      if (o.gate_norm != GateNorm::none)
        make(of("norm_ih_weight"), G, 0.4, 1), make(of("norm_ih_bias"), G, 0.4);
      if (o.gate_norm == GateNorm::separate)
        make(of("norm_hh_weight"), G, 0.4, 1), make(of("norm_hh_bias"), G, 0.4);
      if (o.cell_norm != CellNorm::none)
        make(of("norm_c_weight"), hidden, 0.4, 1), make(of("norm_c_bias"), hidden, 0.4);
      for (int s = 0; s < o.states; ++s) {
        if (v.initial) make(of("initial", s), batch * hidden, 1);
        outer[of("final", s)] = rows.make<double>(batch * hidden, 1);
      }
    }
    outer["y"] = rows.make<double>(rows.rows() * v.directions * hidden, 1);
    for (auto& [name, values] : outer) {
      for (double& value : values) value = double(float(value));
    }
    for (Index t = 0; t < steps; ++t) {
      for (Index b = 0; b < rows.active(t); ++b) numbers.push_back(t * batch + b);
    }
  }
};

// A case in memory of its own: every array has exactly the size that it needs.
template <class T>
class VariedRun {
 public:
  VariedRun(const VariedCase& c, const Plan& plan)
      : c_(c), kernels_(cpu::kernels().of<T>().staged), plan_(plan), x_(taken("x", c.sizes.input)) {
    const Index lanes = cpu::kernels().of<T>().lanes, hidden = c.sizes.hidden;
    units_ = (hidden + lanes - 1) / lanes * lanes;
    for (int d = 0; d < c.variant.directions; ++d) {
      variation_.push_back(variation(d));
      const TapeSize size = variation_.back().tape_size();
      tape_.emplace_back(1, size.scalars(c.rows.rows(), hidden, c.variant.recompute, Index(sizeof(T))));
    }
  }

  VariedRun& forward(bool training) {
    const Index hidden = c_.sizes.hidden;
    Layer<T> layer{};
    layer.directions = c_.variant.directions;
    y_ = &output("y", c_.rows.rows(), layer.directions * hidden, kGap);
    for (int d = 0; d < layer.directions; ++d) {
      ForwardArgs<T>& args = layer.forward[d];
      begin(args, d);
      args.y = y_->rows(d * hidden);
      args.tape = training ? tape_[size_t(d)].data() : nullptr;
      for (int s = 0; s < c_.options.states; ++s)
        args.final[s] = output(named("final", d, s), c_.sizes.batch, hidden, kGap).rows();
    }
    const Stack<T> stack{1, &layer};
    intact_ &= run_kernel(kernels_.forward, stack, plan_, awaited_streams(stack, plan_),
                          kernels_.forward_scratch(stack, plan_));
    for (const auto& tape : tape_) intact_ &= tape.intact();
    return *this;
  }

  VariedRun& backward() {
    const Index hidden = c_.sizes.hidden, rows = c_.rows.rows();
    LayerGradient<T> layer{};
    layer.directions = c_.variant.directions;
    std::vector<VariationParameters<T>> gradients(size_t(layer.directions));
    const Poisoned<T>& dy = given(c_.outer, "y", layer.directions * hidden);
    const Poisoned<T>& dx = output("dx", rows, c_.sizes.input, kGap);
    for (int d = 0; d < layer.directions; ++d) {
      BackwardArgs<T>& args = layer.backward[d];
      begin(args, d);
      args.y = rows_of(*y_, d * hidden);
      args.tape = tape_[size_t(d)].data();
      args.dy = rows_of(dy, d * hidden);
      args.dx = dx.rows();
      args.accumulate_dx = d > 0;
      for (int s = 0; s < c_.options.states; ++s) {
        args.dfinal[s] = rows_of(given(c_.outer, named("final", d, s), hidden));
        if (c_.variant.initial)
          args.dinitial[s] = output("d" + named("initial", d, s), c_.sizes.batch, hidden, 0).rows();
      }
      args.dinput = {of_gates("dw_ih", d, c_.sizes.input)};
      args.drecurrent = {of_gates("dw_hh", d, hidden)};
      if (c_.variant.biases) args.dinput_bias = of_gates("db_ih", d, 1), args.dbias = of_gates("db_hh", d, 1);
      const auto own = [&](const char* name) -> T* {
        const auto found = c_.inputs.find(named(name, d));
        return found == c_.inputs.end()
                   ? nullptr
                   : output("d" + found->first, 1, Index(found->second.size()), 0).data();
      };
      VariationParameters<T>& g = gradients[size_t(d)];
      g.peephole = own("peephole");
      g.norm_ih_weight = own("norm_ih_weight"), g.norm_ih_bias = own("norm_ih_bias");
      g.norm_hh_weight = own("norm_hh_weight"), g.norm_hh_bias = own("norm_hh_bias");
      g.norm_c_weight = own("norm_c_weight"), g.norm_c_bias = own("norm_c_bias");
      args.dvariation = &g;
    }
    intact_ &= run_kernel(kernels_.backward, layer, plan_, 0, kernels_.backward_scratch(layer, plan_));
    return *this;
  }

  // What is there of gates has their units alone, and not what fills their last vectors.
  Values values() {
    Values all;
    for (const auto& [name, memory] : outputs_) {
      intact_ &= memory->intact();
      all[name] = memory->values();
      const auto padded = padded_.find(name);
      if (padded == padded_.end()) continue;
      const Index each = padded->second * c_.sizes.hidden, whole = padded->second * units_;
      std::vector<double> own;
      for (int g = 0; g < c_.options.gates; ++g) {
        const auto first = all[name].begin() + g * whole;
        own.insert(own.end(), first, first + each);
      }
      all[name] = own;
    }
    return all;
  }
  bool intact() const { return intact_; }

 private:
  static std::string named(const char* what, int d, int s = -1) { return Run<T>::named(what, d, s); }

  template <class Args>
  void begin(Args& args, int d) {
    const Options& o = c_.options;
    args.shape = c_.rows.shape(d);
    args.shape.hidden = o.gates * units_;
    args.weights = {gates("w_ih", d), gates("w_hh", d), gates("b_ih", d), gates("b_hh", d), nullptr};
    args.x = rows_of(*x_);
    args.recompute = c_.variant.recompute;
    args.variation = &variation_[size_t(d)];
    for (int s = 0; s < o.states && c_.variant.initial; ++s)
      args.initial[s] = rows_of(given(c_.inputs, named("initial", d, s), c_.sizes.hidden));
  }

  Variation<T> variation(int d) {
    const Options& o = c_.options;
    const auto own = [&](const char* name) { return found(named(name, d)); };
    Variation<T> v{};
    v.maths = o.maths, v.gates = o.gates, v.states = o.states;
    v.hidden = c_.sizes.hidden, v.unit_scalars = units_;
    v.gate_norm = o.gate_norm, v.cell_norm = o.cell_norm;
    v.update_bias = T(o.update_bias);
    v.gate_clip = T(o.gate_clip), v.cell_clip = T(o.cell_clip), v.grad_clip = T(c_.grad_clip);
    v.zoneout[0] = o.zoneout_h, v.zoneout[1] = o.zoneout_c;
    v.recurrent_dropout = o.dropout, v.drawn = o.drawn;
    v.seed = 0x123456789abcdef, v.direction = d;
    v.numbers = c_.numbers.data(), v.batch = c_.sizes.batch;
    v.peephole = own("peephole");
    v.norm_ih_weight = own("norm_ih_weight"), v.norm_ih_bias = own("norm_ih_bias");
    v.norm_hh_weight = own("norm_hh_weight"), v.norm_hh_bias = own("norm_hh_bias");
    v.norm_c_weight = own("norm_c_weight"), v.norm_c_bias = own("norm_c_bias");
    return v;
  }

  const Poisoned<T>* taken(const std::string& name, Index columns) {
    return &given(c_.inputs, name, columns);
  }
  const Poisoned<T>& given(const Values& from, const std::string& name, Index columns, Index gap = kGap) {
    const std::vector<double>& values = from.at(name);
    const std::vector<T> own(values.begin(), values.end());
    const Index rows = columns > 0 ? Index(values.size()) / columns : 0;
    return *memory_.emplace_back(std::make_unique<Poisoned<T>>(spread(own, rows, columns, gap)));
  }
  // A parameter, or null where there is none.
  const T* found(const std::string& name) {
    const auto at = c_.inputs.find(name);
    return at == c_.inputs.end() ? nullptr : given(c_.inputs, name, Index(at->second.size()), 0).data();
  }
  // A matrix or bias of all gates, each of them filled up with zeros to whole vectors.
  const T* gates(const char* what, int d) {
    const auto at = c_.inputs.find(named(what, d));
    if (at == c_.inputs.end()) return nullptr;
    const Index G = c_.options.gates, each = Index(at->second.size()) / G, columns = each / c_.sizes.hidden;
    Values padded{{what, std::vector<double>(size_t(G * units_ * columns))}};
    for (Index g = 0; g < G; ++g)
      std::copy_n(at->second.begin() + g * each, each, padded[what].begin() + g * units_ * columns);
    return given(padded, what, G * units_ * columns, 0).data();
  }
  Poisoned<T>& output(const std::string& name, Index rows, Index columns, Index gap) {
    return *(outputs_[name] = std::make_unique<Poisoned<T>>(rows, columns, gap));
  }
  T* of_gates(const char* what, int d, Index columns) {
    padded_[named(what, d)] = columns;
    return output(named(what, d), 1, c_.options.gates * units_ * columns, 0).data();
  }

  const VariedCase& c_;
  const CellKernels<T>& kernels_;
  const Plan plan_;
  Index units_ = 0;
  std::vector<std::unique_ptr<Poisoned<T>>> memory_;
  const Poisoned<T>* x_;
  const Poisoned<T>* y_ = nullptr;
  std::vector<Poisoned<T>> tape_;
  std::vector<Variation<T>> variation_;
  std::map<std::string, std::unique_ptr<Poisoned<T>>> outputs_;
  std::map<std::string, Index> padded_;  // columns
  bool intact_ = true;
};

std::string text(const VariedCase& c, const Plan& plan) {
  return std::string(c.options.name) + ": " + text(c.sizes, c.variant, plan);
}

template <class T>
Values results(const VariedCase& c, const Plan& plan) {
  CAPTURE(text(c, plan));
  VariedRun<T> training(c, plan), inference(c, plan);
  const Values found = training.forward(true).backward().values();
  const Values outputs = inference.forward(false).values();
  REQUIRE(training.intact());
  REQUIRE(inference.intact());
  REQUIRE(first_difference(outputs, found) == "");
  return found;
}

// One more result than outputs and gradients of all inputs would be one that was forgotten here.
void check_differences(VariedCase c) {
  const auto loss = [&] {
    double sum = 0;
    const Values found = VariedRun<double>(c, {}).forward(false).values();
    for (const auto& [name, outer] : c.outer) {
      for (size_t i = 0; i < outer.size(); ++i) sum += outer[i] * found.at(name)[i];
    }
    return sum;
  };
  const Values gradients = results<double>(c, {});
  REQUIRE(gradients.size() == c.outer.size() + c.inputs.size());
  // A central difference is off by about the step squared, and by rounding over the step. A small step, since
  // a gate that reaches its clip within it has no derivative.
  constexpr double kStep = 1e-6, kBound = 1e-6;
  constexpr size_t kPlaces = 7;  // of each input, spread over it
  for (auto& [name, values] : c.inputs) {
    const size_t stride = values.size() / kPlaces + 1;
    for (size_t i = 0; i < values.size(); i += stride) {
      const double before = values[i];
      values[i] = before + kStep;
      const double above = loss();
      values[i] = before - kStep;
      const double below = loss();
      values[i] = before;
      const double want = (above - below) / (2 * kStep), got = gradients.at("d" + name)[i];
      CAPTURE(text(c, {}));
      CAPTURE(name);
      CAPTURE(i);
      REQUIRE(std::fabs(got - want) <= kBound * std::fmax(1, std::fabs(want)));
    }
  }
}

// Parameters of norms and peepholes are summed over the whole batch: no plan of such a layer has shards.
const std::vector<Plan>& whole_plans() {
  static const std::vector<Plan> all = {{1, 2, 1}, {1, 3, 1}, {2, 1, 1}, {2, 2, 1}, {1, 4, 1}};
  return all;
}

const Plan& next_whole_plan() {
  static size_t next = 0;
  return whole_plans()[next++ % whole_plans().size()];
}

template <class T>
void check_plans(const VariedCase& c, const std::vector<Plan>& under) {
  const Values serial = results<T>(c, {});
  for (const Plan& plan : under) REQUIRE(first_difference(results<T>(c, plan), serial) == "");
}

TEST_CASE("varied: gradients against differences") {
  const Index L = cpu::kernels().of<double>().lanes;  // a norm of fewer units bends too much
  for (const Options& options : kOptions) {
    check_differences({options, 3, 2, 2, L + 4, {false, 2}});
    check_differences({options, 4, 5, 3, 5, {true, 2, false, options.gate_norm != GateNorm::joint}});
    if (!options.resets()) check_differences({options, 8, 3, 2, 6, {true, 1, true, true, true}});
  }
}

TEST_CASE("varied: float against double") {
  for (const Options& options : kOptions) {
    for (const Index hidden : {1, 7, 16, 33}) {
      for (const bool ragged : {false, true}) {
        VariedCase c{options, 4, 5, 3, hidden, {ragged, 2}};
        c.grad_clip = 0.5;
        const Values exact = results<double>(c, {}), found = results<float>(c, {});
        // The scale of a norm over one unit is the root of 1 / eps, which multiplies roundings.
        const double tolerance = kTolerance<float> * (options.norms() && hidden == 1 ? 400 : 10);
        CAPTURE(text(c, {}));
        REQUIRE(found.size() == exact.size());
        REQUIRE(first_difference(found, exact, tolerance) == "");
      }
    }
  }
}

TEST_CASE_TEMPLATE("varied: the same bits under every plan", T, float, double) {
  const Index L = cpu::kernels().of<T>().lanes;
  for (const Options& options : kOptions) {
    VariedCase c{options, 3, 5, L + 1, 5 * L + 1, {true, 2}};
    c.grad_clip = 0.5;
    check_plans<T>(c, whole_plans());
    check_plans<T>({options, 3, 2, 2, 3, {}}, whole_plans());  // more members than a gate has vectors
    check_plans<T>({options, 1, 1, 2, 9 * L, {}}, {next_whole_plan()});
    check_plans<T>({options, 9, 90, 2, L + 1, {true}}, {next_whole_plan()});  // several chunks of rows
    if (!options.resets())
      check_plans<T>({options, 40, 16, 2, 2 * L, {true, 1, true, true, true}}, {next_whole_plan()});
  }
}

TEST_CASE_TEMPLATE("varied: sizes of nothing", T, float, double) {
  for (const Options& options : kOptions) {
    check_plans<T>({options, 3, 0, 2, 5, {}}, {next_whole_plan()});
    check_plans<T>({options, 0, 2, 2, 5, {}}, {next_whole_plan()});
    check_plans<T>({options, 3, 2, 0, 5, {}}, {next_whole_plan()});
  }
}

}  // namespace
}  // namespace rnnfused::test
