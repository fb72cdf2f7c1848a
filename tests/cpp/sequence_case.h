// A layer on made-up data, run by kernels under any plan and by a plain implementation: one row of the batch
// after another, in double, by the equations. It shares no code with the drivers.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "core/attention.h"
#include "cpu/kernels.h"
#include "formats.h"

namespace rnnfused::test {

constexpr int kMaxGates = 4;

// One hidden unit in one step. x and h are the two products with their biases, by gate in torch's order.
struct Unit {
  double x[kMaxGates], h[kMaxGates];
  double prev[kMaxStates], next[kMaxStates];
};

struct UnitGradient {
  double x[kMaxGates], h[kMaxGates];
  double prev[kMaxStates];  // without the recurrent product
};

struct PlainCell {
  int gates, states;
  void (*forward)(Unit& unit);
  UnitGradient (*backward)(const Unit& unit, const double (&dnext)[kMaxStates]);
};

struct Sizes {
  Index steps, batch, input, hidden, output;
};

struct Variant {
  bool ragged = false;
  int directions = 1;
  bool initial = true, biases = true;
  bool recompute = false;
};

// Every result by name, in double: a float keeps its bits in one.
using Values = std::map<std::string, std::vector<double>>;

// Memory that shows what is read before it was written and what is written where it should not be: all bytes
// are ones, which is NaN, and those between the rows and behind the last must still be so at the end. ASan
// watches the end by itself.
template <class T>
class Poisoned {
 public:
  Poisoned(Index rows, Index columns, Index gap = 0)
      : rows_(rows), columns_(columns), stride_(columns + gap), bytes_(size_t(used() + kGuard) * sizeof(T)) {
    memory_.reset(static_cast<T*>(::operator new(bytes_, std::align_val_t{64})));
    std::memset(memory_.get(), 0xff, bytes_);
  }

  T* data() const { return memory_.get(); }
  Rows<T> rows(Index column = 0) const { return {data() + column, stride_}; }

  std::vector<double> values() const {
    std::vector<double> all;
    for (Index r = 0; r < rows_; ++r) {
      for (Index c = 0; c < columns_; ++c) all.push_back(Format<T>::value(data()[r * stride_ + c]));
    }
    return all;
  }

  bool intact() const {
    for (Index i = 0; i < Index(bytes_ / sizeof(T)); ++i) {
      const bool outside = i >= used() || i % stride_ >= columns_;
      if (outside && !untouched(data() + i)) return false;
    }
    return true;
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr Index kGuard = 0;
#else
  static constexpr Index kGuard = 64;
#endif
  struct Free {
    void operator()(T* p) const { ::operator delete(static_cast<void*>(p), std::align_val_t{64}); }
  };

  Index used() const { return rows_ > 0 ? (rows_ - 1) * stride_ + columns_ : 0; }
  static bool untouched(const T* p) {
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, p, sizeof(T));
    for (unsigned char byte : bytes) {
      if (byte != 0xff) return false;
    }
    return true;
  }

  Index rows_, columns_, stride_;
  size_t bytes_;
  std::unique_ptr<T, Free> memory_;
};

// What one direction is given.
template <class S>
struct DirectionData {
  using T = Compute<S>;
  std::vector<S> w_ih, w_hh, w_hr;
  std::vector<T> b_ih, b_hh;
  std::vector<float> s_ih, s_hh, s_hr;  // scales of the matrices' rows, if they have any
  std::vector<T> initial[kMaxStates], dfinal[kMaxStates];
};

template <class S>
struct Problem {
  using T = Compute<S>;
  Sizes sizes;
  Variant variant;
  int gates, states;
  std::vector<Index> offsets;
  std::vector<Stored<S>> x, dy;  // [rows, I], [rows, D P]
  std::vector<DirectionData<S>> directions;

  // Integers from -1 to 1 if `integers`, otherwise reals from -1 to 1; weights are scaled down with the
  // hidden size.
  Problem(const Sizes& s, const Variant& v, int gate_count, int state_count, bool integers, unsigned seed)
      : sizes(s), variant(v), gates(gate_count), states(state_count), random_(seed), integers_(integers) {
    offsets = {0};
    for (Index t = 0; t < s.steps; ++t) offsets.push_back(offsets.back() + active(t));
    x = make<Stored<S>>(rows() * s.input, 1);
    dy = make<Stored<S>>(rows() * v.directions * s.output, 1);
    const double from_x = 1 / std::sqrt(double(s.input + 1)), from_h = 1 / std::sqrt(double(s.hidden + 1));
    for (int d = 0; d < v.directions; ++d) {
      DirectionData<S>& data = directions.emplace_back();
      make_matrix(gates * s.hidden, s.input, from_x, data.w_ih, data.s_ih);
      make_matrix(gates * s.hidden, s.output, from_h, data.w_hh, data.s_hh);
      if (v.biases) data.b_ih = make<T>(gates * s.hidden, 1), data.b_hh = make<T>(gates * s.hidden, 1);
      if (projected()) make_matrix(s.output, s.hidden, from_h, data.w_hr, data.s_hr);
      for (int state = 0; state < states; ++state) {
        if (v.initial) data.initial[state] = make<T>(s.batch * units(state), 1);
        data.dfinal[state] = make<T>(s.batch * units(state), 1);
      }
    }
  }

  bool projected() const { return sizes.output != sizes.hidden; }
  Index rows() const { return offsets.back(); }
  Index units(int state) const { return state == 0 ? sizes.output : sizes.hidden; }

  // Ragged: the whole batch runs in the first step, then fewer and fewer rows, with steps at which none ends;
  // the last steps of a long sequence hold none.
  Index active(Index t) const {
    if (!variant.ragged) return sizes.batch;
    const Index ended = t / 2 * 2 * sizes.batch / 5;
    return ended < sizes.batch ? sizes.batch - ended : 0;
  }
  Index length(Index b) const {
    Index n = 0;
    while (n < sizes.steps && b < active(n)) ++n;
    return n;
  }

  SequenceShape shape(int direction) const {
    return {sizes.steps,  sizes.batch,    sizes.input,   sizes.hidden,
            sizes.output, offsets.data(), direction == 1};
  }
  Weights<S> weights(int direction) const {
    const auto at = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    const DirectionData<S>& data = directions[size_t(direction)];
    return {data.w_ih.data(), data.w_hh.data(), at(data.b_ih), at(data.b_hh),
            at(data.w_hr),    at(data.s_ih),    at(data.s_hh), at(data.s_hr)};
  }

  // As many numbers more.
  template <class X>
  std::vector<X> make(Index n, double scale) {
    std::vector<X> values(static_cast<size_t>(n));
    for (X& value : values) {
      // A few integers that are not zero keep sums of products of sums exact.
      value = Format<X>::nearest(integers_ ? (random_() % 8 == 0 ? int(random_() % 3) - 1 : 0)
                                           : scale * (double(random_()) / double(random_.max()) * 2 - 1));
    }
    return values;
  }

 private:
  void make_matrix(Index rows_of, Index columns, double scale, std::vector<S>& matrix,
                   std::vector<float>& scales) {
    if constexpr (kQuantized<S>) {
      for (Index i = 0; i < rows_of * columns; ++i) matrix.push_back({int8_t(int(random_() % 256) - 128)});
      for (Index i = 0; i < rows_of; ++i)
        scales.push_back(float(scale / 127 * double(1 + random_() % 3) / 3));
    } else {
      matrix = make<S>(rows_of * columns, scale);
    }
  }

  std::mt19937 random_;
  bool integers_;
};

// ---- By the kernels

// Whether the kernel kept to its scratch.
template <class Args>
bool run_kernel(TeamKernel<Args> kernel, const Args& args, const Plan& plan, int streams,
                Index scratch_bytes) {
  const Poisoned<unsigned char> scratch(1, scratch_bytes > 0 ? scratch_bytes : 1);
  run_team(kernel, args, plan, streams, scratch.data());
  return scratch.intact();
}

// Rows of inputs and outputs need not touch; these do not.
constexpr Index kGap = 3;

// Inputs are copied, so that each has exactly the memory that it needs.
template <class T>
Rows<const T> rows_of(const Poisoned<T>& p, Index column = 0) {
  return {p.data() + column, p.rows().stride};
}

template <class T>
Poisoned<T> spread(const std::vector<T>& values, Index rows, Index columns, Index gap = kGap) {
  Poisoned<T> out(rows, columns, gap);
  for (Index r = 0; r < rows; ++r) {
    for (Index c = 0; c < columns; ++c) out.rows()[r][c] = values[size_t(r * columns + c)];
  }
  return out;
}

// What backward is asked for and given.
struct Asked {
  bool dx = true, dinitial = true, weights = true, biases = true;
  bool dy = true, dfinal = true;
};

template <class S>
class Run {
  using T = Compute<S>;

 public:
  // attention: of the caller's, whose x is this run's; null where the layer does not attend.
  Run(const CellKernels<S>& kernels, const Problem<S>& problem, const Plan& plan,
      const AttentionGradient<T>* attention = nullptr)
      : kernels_(kernels),
        p_(problem),
        plan_(plan),
        attention_(attention),
        x_(spread(p_.x, p_.rows(), p_.sizes.input, attention ? 0 : kGap)),
        dy_(spread(p_.dy, p_.rows(), p_.variant.directions * p_.sizes.output)),
        y_(p_.rows(), p_.variant.directions * p_.sizes.output, kGap) {
    for (int d = 0; d < p_.variant.directions; ++d) {
      const SequenceShape shape = p_.shape(d);
      const TapeSize size = kernels_.tape_size(shape.projected());
      tape_.emplace_back(
          1, size.scalars(shape.rows(), shape.hidden, p_.variant.recompute, Index(sizeof(Stored<S>))));
      for (int s = 0; s < p_.states; ++s) final_.emplace_back(p_.sizes.batch, p_.units(s), kGap);
    }
  }

  Run& forward(bool training) {
    run_stack({this}, training);
    return *this;
  }

  // The layers over one another, each reading the y of the one before it instead of its problem's x.
  static void run_stack(const std::vector<Run*>& runs, bool training) {
    Run& first = *runs[0];
    const std::vector<Layer<S>> layers = layers_of(runs, training);
    const Stack<S> stack{int(layers.size()), layers.data()};
    const int streams = awaited_streams(stack, first.plan_);
    const Index scratch = first.kernels_.forward_scratch(stack, first.plan_);
    const bool intact = run_kernel(first.kernels_.forward, stack, first.plan_, streams, scratch);
    for (Run* run : runs) {
      run->intact_ &= intact;
      run->keep_outputs();
    }
  }

  // The same, with weights that were packed into memory of the caller's, or are now.
  static void run_packed(const std::vector<Run*>& runs, std::unique_ptr<Poisoned<unsigned char>>& packed) {
    const Run& first = *runs[0];
    const std::vector<Layer<S>> layers = layers_of(runs, false);
    Stack<S> stack{int(layers.size()), layers.data()};
    if (!packed) {
      const Index bytes = first.kernels_.packed_bytes(stack, first.plan_);
      packed = std::make_unique<Poisoned<unsigned char>>(1, bytes > 0 ? bytes : 1);
      stack.packed = packed->data();
      run_team(first.kernels_.pack, stack, first.plan_, 0, nullptr);
    }
    stack.packed = packed->data();
    const int streams = awaited_streams(stack, first.plan_);
    const Index scratch = first.kernels_.forward_scratch(stack, first.plan_);
    const bool intact = run_kernel(first.kernels_.forward, stack, first.plan_, streams, scratch);
    for (Run* run : runs) {
      run->intact_ &= intact && packed->intact();
      run->keep_outputs();
    }
  }

  Run& backward(const Asked& asked) {
    const Sizes& n = p_.sizes;
    const Index gates = p_.gates * n.hidden;
    LayerGradient<S> layer{};
    layer.directions = p_.variant.directions;
    std::vector<std::pair<std::string, Poisoned<T>>> outputs;
    std::vector<std::pair<std::string, Poisoned<S>>> rounded;
    const auto output = [&](bool wanted, const std::string& name, Index rows, Index columns) -> T* {
      if (!wanted) return nullptr;
      return outputs.emplace_back(name, Poisoned<T>(rows, columns)).second.data();
    };
    const auto of_matrix = [&](bool wanted, const std::string& name, Index rows,
                               Index columns) -> MatrixGradient<S> {
      if (!kNarrow<S> || p_.rows() > kRowsSummedAtOnce || !wanted)
        return {output(wanted, name, rows, columns)};
      return {nullptr, rounded.emplace_back(name, Poisoned<S>(rows, columns)).second.data()};
    };
    const Index context = attention_ ? attention_->of.context : 0;
    const Poisoned<S> dx(p_.rows(), n.input - context, context + kGap);
    for (int d = 0; d < layer.directions; ++d) {
      BackwardArgs<S>& args = layer.backward[d];
      args.shape = p_.shape(d);
      args.weights = p_.weights(d);
      args.x = rows_of(x_);
      args.y = rows_of(y_, d * n.output);
      args.tape = tape_[size_t(d)].data();
      args.recompute = p_.variant.recompute;
      if (asked.dy) args.dy = rows_of(dy_, d * n.output);
      if (asked.dx) args.dx = dx.rows();
      args.accumulate_dx = d > 0;
      for (int s = 0; s < p_.states; ++s) {
        args.initial[s] = initial(d, s);
        if (asked.dfinal) args.dfinal[s] = {p_.directions[size_t(d)].dfinal[s].data(), p_.units(s)};
        args.dinitial[s] = {output(asked.dinitial, named("dinitial", d, s), n.batch, p_.units(s)),
                            p_.units(s)};
      }
      args.dinput = of_matrix(asked.weights, named("dw_ih", d), gates, n.input);
      args.drecurrent = of_matrix(asked.weights, named("dw_hh", d), gates, n.output);
      args.dinput_bias = output(asked.biases && p_.variant.biases, named("db_ih", d), 1, gates);
      args.dbias = output(asked.biases && p_.variant.biases, named("db_hh", d), 1, gates);
      args.dprojection = of_matrix(asked.weights && p_.projected(), named("dw_hr", d), n.output, n.hidden);
      args.attention = attention_;
    }
    intact_ &= run_kernel(kernels_.backward, layer, plan_, 0, kernels_.backward_scratch(layer, plan_));
    if (asked.dx) keep("dx", dx);
    for (const auto& [name, memory] : outputs) keep(name, memory);
    for (const auto& [name, memory] : rounded) keep(name, memory);
    return *this;
  }

  const Poisoned<Stored<S>>& x() const { return x_; }
  const Values& values() const { return values_; }
  bool intact() const { return intact_; }

  static std::string named(const char* what, int direction, int state = -1) {
    return std::string(what) + (state < 0 ? "" : std::to_string(state)) + (direction == 1 ? "_reverse" : "");
  }

 private:
  Rows<const T> initial(int direction, int state) const {
    const std::vector<T>& values = p_.directions[size_t(direction)].initial[state];
    return {p_.variant.initial ? values.data() : nullptr, p_.units(state)};
  }
  static std::vector<Layer<S>> layers_of(const std::vector<Run*>& runs, bool training) {
    std::vector<Layer<S>> layers;
    const Run* below = nullptr;
    for (const Run* run : runs) {
      layers.push_back(run->layer(training, below ? below->y_ : run->x_));
      below = run;
    }
    return layers;
  }
  Layer<S> layer(bool training, const Poisoned<Stored<S>>& x) const {
    Layer<S> layer{};
    layer.directions = p_.variant.directions;
    for (int d = 0; d < layer.directions; ++d) {
      ForwardArgs<S>& args = layer.forward[d];
      args.shape = p_.shape(d);
      args.weights = p_.weights(d);
      args.x = rows_of(x);
      args.y = y_.rows(d * p_.sizes.output);
      args.tape = training ? tape_[size_t(d)].data() : nullptr;
      args.recompute = p_.variant.recompute;
      args.attention = attention_ ? &attention_->of : nullptr;
      for (int s = 0; s < p_.states; ++s) {
        args.initial[s] = initial(d, s);
        args.final[s] = final_[size_t(d * p_.states + s)].rows();
      }
    }
    return layer;
  }
  void keep_outputs() {
    keep("y", y_);
    for (int d = 0; d < p_.variant.directions; ++d) {
      intact_ &= tape_[size_t(d)].intact();
      for (int s = 0; s < p_.states; ++s) keep(named("final", d, s), final_[size_t(d * p_.states + s)]);
    }
  }
  template <class X>
  void keep(const std::string& name, const Poisoned<X>& memory) {
    values_[name] = memory.values();
    intact_ &= memory.intact();
  }

  const CellKernels<S>& kernels_;
  const Problem<S>& p_;
  Plan plan_;
  const AttentionGradient<T>* attention_;
  Poisoned<Stored<S>> x_, dy_, y_;
  std::vector<Poisoned<Stored<S>>> tape_;
  std::vector<Poisoned<T>> final_;
  Values values_;
  bool intact_ = true;
};

// ---- Plainly

// Gives columns of a plain layer's input that depend on the states before each step.
class PlainFeedback {
 public:
  // Writes them into the row's x, from the h before it.
  virtual void forward(Index row, const std::vector<double>& h, std::vector<double>& x) = 0;
  // Adds what comes of the gradient of the row's x to that of the h before it.
  virtual void backward(Index row, const double* dx, std::vector<double>& dh) = 0;

 protected:
  ~PlainFeedback() = default;
};

template <class S>
class PlainRun {
 public:
  PlainRun(const PlainCell& cell, const Problem<S>& problem, PlainFeedback* feedback = nullptr)
      : cell_(cell), p_(problem), n_(problem.sizes), feedback_(feedback) {
    values_["y"].resize(size_t(p_.rows() * p_.variant.directions * n_.output));
    if (!kQuantized<S>) values_["dx"].resize(size_t(p_.rows() * n_.input));
    for (int d = 0; d < p_.variant.directions; ++d) {
      for (int s = 0; s < p_.states; ++s) at("final", d, s).resize(size_t(n_.batch * p_.units(s)));
      if (!kQuantized<S>) size_gradients(d);
      for (Index b = 0; b < n_.batch; ++b) row_of_batch(d, b);
    }
  }

  const Values& values() const { return values_; }

 private:
  using Row = std::vector<double>;
  struct Step {
    Index row;
    Row x;
    Row h_prev;  // after the projection
    std::vector<Unit> units;
  };

  void size_gradients(int d) {
    for (int s = 0; s < p_.states; ++s) at("dinitial", d, s).resize(size_t(n_.batch * p_.units(s)));
    const Index gates = p_.gates * n_.hidden;
    at("dw_ih", d).resize(size_t(gates * n_.input));
    at("dw_hh", d).resize(size_t(gates * n_.output));
    if (p_.variant.biases) at("db_ih", d).resize(size_t(gates)), at("db_hh", d).resize(size_t(gates));
    if (p_.projected()) at("dw_hr", d).resize(size_t(n_.output * n_.hidden));
  }

  Row& at(const char* what, int d, int s = -1) { return values_[Run<S>::named(what, d, s)]; }
  template <class X>
  static double get(const std::vector<X>& values, Index i) {
    return values.empty() ? 0 : Format<X>::value(values[size_t(i)]);
  }
  // An entry of a matrix.
  static double get(const std::vector<S>& matrix, const std::vector<float>& scales, Index columns, Index row,
                    Index column) {
    return get(matrix, row * columns + column) * (scales.empty() ? 1 : double(scales[size_t(row)]));
  }
  // What quantised weights are multiplied with in place of a row: the nearest of 127 steps on each side of
  // zero.
  static Row rounded(Row row) {
    double largest = 0;
    for (const double value : row) largest = std::fmax(largest, std::fabs(value));
    for (double& value : row) {
      if (kQuantized<S> && largest > 0) value = std::nearbyint(value / largest * 127) * largest / 127;
    }
    return row;
  }

  void row_of_batch(int d, Index b) {
    const DirectionData<S>& data = p_.directions[size_t(d)];
    Row state[kMaxStates];
    for (int s = 0; s < p_.states; ++s) {
      for (Index u = 0; u < p_.units(s); ++u) state[s].push_back(get(data.initial[s], b * p_.units(s) + u));
    }
    std::vector<Step> steps;
    const Index length = p_.length(b);
    for (Index i = 0; i < length; ++i) {
      const Index t = d == 1 ? length - 1 - i : i;
      steps.push_back({p_.offsets[size_t(t)] + b, Row(size_t(n_.input)), state[0], {}});
      forward(d, steps.back(), state);
    }
    for (int s = 0; s < p_.states; ++s) put(state[s], at("final", d, s), b * p_.units(s));
    if (kQuantized<S>) return;

    for (int s = 0; s < p_.states; ++s) {
      for (Index u = 0; u < p_.units(s); ++u) state[s][size_t(u)] = get(data.dfinal[s], b * p_.units(s) + u);
    }
    for (size_t i = steps.size(); i-- > 0;) backward(d, steps[i], state);
    for (int s = 0; s < p_.states; ++s) put(state[s], at("dinitial", d, s), b * p_.units(s));
  }

  static void put(const Row& from, Row& to, Index first) {
    for (size_t i = 0; i < from.size(); ++i) to[size_t(first) + i] = from[i];
  }

  void forward(int d, Step& step, Row (&state)[kMaxStates]) {
    const DirectionData<S>& w = p_.directions[size_t(d)];
    Row h(static_cast<size_t>(n_.hidden));
    for (Index k = 0; k < n_.input; ++k) step.x[size_t(k)] = get(p_.x, step.row * n_.input + k);
    if (feedback_) feedback_->forward(step.row, step.h_prev, step.x);
    const Row x = rounded(step.x);
    const Row h_prev = rounded(step.h_prev);
    for (Index u = 0; u < n_.hidden; ++u) {
      Unit unit{};
      for (int g = 0; g < p_.gates; ++g) {
        const Index row = g * n_.hidden + u;
        unit.x[g] = get(w.b_ih, row), unit.h[g] = get(w.b_hh, row);
        for (Index k = 0; k < n_.input; ++k)
          unit.x[g] += get(w.w_ih, w.s_ih, n_.input, row, k) * x[size_t(k)];
        for (Index k = 0; k < n_.output; ++k)
          unit.h[g] += get(w.w_hh, w.s_hh, n_.output, row, k) * h_prev[size_t(k)];
      }
      if (!p_.projected()) unit.prev[0] = state[0][size_t(u)];
      for (int s = 1; s < p_.states; ++s) unit.prev[s] = state[s][size_t(u)];
      cell_.forward(unit);
      h[size_t(u)] = unit.next[0];
      for (int s = 1; s < p_.states; ++s) state[s][size_t(u)] = unit.next[s];
      step.units.push_back(unit);
    }
    state[0] = p_.projected() ? project(w, h) : h;
    put(state[0], values_["y"], (step.row * p_.variant.directions + d) * n_.output);
  }

  Row project(const DirectionData<S>& w, const Row& h) const {
    Row out(static_cast<size_t>(n_.output));
    const Row factors = rounded(h);
    for (Index o = 0; o < n_.output; ++o) {
      for (Index u = 0; u < n_.hidden; ++u)
        out[size_t(o)] += get(w.w_hr, w.s_hr, n_.hidden, o, u) * factors[size_t(u)];
    }
    return out;
  }

  Row unproject(int d, const Step& step, const Row& dout) {
    const DirectionData<S>& w = p_.directions[size_t(d)];
    Row& dw = at("dw_hr", d);
    Row dh(static_cast<size_t>(n_.hidden));
    for (Index o = 0; o < n_.output; ++o) {
      for (Index u = 0; u < n_.hidden; ++u) {
        dh[size_t(u)] += get(w.w_hr, o * n_.hidden + u) * dout[size_t(o)];
        dw[size_t(o * n_.hidden + u)] += dout[size_t(o)] * step.units[size_t(u)].next[0];
      }
    }
    return dh;
  }

  void backward(int d, const Step& step, Row (&dstate)[kMaxStates]) {
    const DirectionData<S>& w = p_.directions[size_t(d)];
    Row dh = dstate[0];
    for (Index o = 0; o < n_.output; ++o) {
      dh[size_t(o)] += get(p_.dy, (step.row * p_.variant.directions + d) * n_.output + o);
    }
    if (p_.projected()) dh = unproject(d, step, dh);
    dstate[0].assign(size_t(n_.output), 0);
    Row &dx = values_["dx"], &dw_ih = at("dw_ih", d), &dw_hh = at("dw_hh", d);
    for (Index u = 0; u < n_.hidden; ++u) {
      const double dnext[kMaxStates] = {dh[size_t(u)], p_.states > 1 ? dstate[1][size_t(u)] : 0};
      const UnitGradient gradient = cell_.backward(step.units[size_t(u)], dnext);
      for (int g = 0; g < p_.gates; ++g) {
        const Index row = g * n_.hidden + u;
        if (p_.variant.biases)
          at("db_ih", d)[size_t(row)] += gradient.x[g], at("db_hh", d)[size_t(row)] += gradient.h[g];
        for (Index k = 0; k < n_.input; ++k) {
          dx[size_t(step.row * n_.input + k)] += gradient.x[g] * get(w.w_ih, row * n_.input + k);
          dw_ih[size_t(row * n_.input + k)] += gradient.x[g] * step.x[size_t(k)];
        }
        for (Index k = 0; k < n_.output; ++k) {
          dstate[0][size_t(k)] += gradient.h[g] * get(w.w_hh, row * n_.output + k);
          dw_hh[size_t(row * n_.output + k)] += gradient.h[g] * step.h_prev[size_t(k)];
        }
      }
      if (!p_.projected()) dstate[0][size_t(u)] += gradient.prev[0];
      for (int s = 1; s < p_.states; ++s) dstate[s][size_t(u)] = gradient.prev[s];
    }
    if (feedback_) feedback_->backward(step.row, dx.data() + step.row * n_.input, dstate[0]);
  }

  const PlainCell cell_;
  const Problem<S>& p_;
  const Sizes n_;
  PlainFeedback* const feedback_;
  Values values_;
};

// ---- Comparing

// Rounding, grown by the steps and by the length of the sums.
template <class S>
constexpr double kTolerance = std::is_same_v<S, double>     ? 1e-12
                              : std::is_same_v<S, float>    ? 2e-5
                              : kQuantized<S>               ? 0.004  // a number's next one, in places
                              : std::is_same_v<S, BFloat16> ? 0.1
                                                            : 0.012;

// The name and place of the first value that differs from what was expected by more than `tolerance` of the
// largest expected one (of 1 if all are smaller); empty if none does. Without tolerance the bits must be the
// same.
inline std::string first_difference(const Values& got, const Values& expected, double tolerance = 0) {
  for (const auto& [name, values] : got) {
    const auto found = expected.find(name);
    if (found == expected.end() || found->second.size() != values.size())
      return name + ": not expected in this size";
    double largest = 1;
    for (double value : found->second) largest = std::fmax(largest, std::fabs(value));
    for (size_t i = 0; i < values.size(); ++i) {
      const double want = found->second[i];
      const bool same = tolerance > 0 ? std::fabs(values[i] - want) <= tolerance * largest
                                      : std::memcmp(&values[i], &want, sizeof(want)) == 0;
      if (!same) {
        return name + "[" + std::to_string(i) + "]: expected " + std::to_string(want) + ", got " +
               std::to_string(values[i]);
      }
    }
  }
  return "";
}

// Groups, members and shards, the odd ones included that no choice would make.
inline const std::vector<Plan>& plans() {
  static const std::vector<Plan> all = {{1, 1, 1}, {1, 2, 1}, {1, 3, 1}, {2, 1, 1},
                                        {2, 1, 2}, {2, 2, 2}, {4, 1, 2}};
  return all;
}

// Teams of more threads than the machine has processors are slow: a case runs under the next few plans only.
constexpr int kPlansPerCase = 2;
inline const Plan& next_plan() {
  static size_t next = 0;
  return plans()[next++ % plans().size()];
}

// Groups, members, shards and wave for a stack in one direction.
inline const std::vector<Plan>& waves() {
  static const std::vector<Plan> all = {{2, 1, 1, 2}, {3, 1, 1, 3}, {2, 2, 1, 2}, {4, 1, 2, 2}, {2, 1, 2, 1}};
  return all;
}

inline std::string list(std::initializer_list<Index> numbers) {
  std::string out;
  for (Index n : numbers) {
    if (!out.empty()) out += ' ';
    out += std::to_string(n);
  }
  return out;
}

inline std::string text(const Sizes& s, const Variant& v, const Plan& p) {
  return "T B I H P = " + list({s.steps, s.batch, s.input, s.hidden, s.output}) +
         ", ragged directions initial biases recompute = " +
         list({v.ragged, v.directions, v.initial, v.biases, v.recompute}) +
         ", groups members shards wave = " + list({p.groups, p.members, p.shards, p.wave});
}

}  // namespace rnnfused::test
