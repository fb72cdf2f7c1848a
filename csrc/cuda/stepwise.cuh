// The stepwise driver: the input projection of all steps as one product, then a product and a kernel per
// step, both directions in each; in backward the products for the weights and the input after the loop. It
// runs on every GPU, with every size and type.
#pragma once

#include "core/staged.h"
#include "core/stream.h"
#include "core/variation.h"
#include "cuda/backward.cuh"
#include "cuda/drivers.h"
#include "cuda/forward.cuh"
#include "cuda/history.cuh"
#include "cuda/launch.cuh"
#include "cuda/resident.h"
#include "cuda/sums.cuh"

namespace rnnfused::cuda {

using Positions = RNNFUSED_ISA::Stream;  // of all rows of the batch, in one direction

template <class T>
Matrix matrix(const T* data, Index row_stride, Index batch_stride = 0) {
  return {data, TypeOf<T>::value, batch_stride, row_stride, 1};
}
inline Matrix transposed(Matrix m) { return {m.data, m.type, m.batch_stride, m.column_stride, m.row_stride}; }

template <class T>
const Variation<Compute<T>>& variation_of(const Layer& layer, int direction = 0) {
  return *static_cast<const Variation<Compute<T>>*>(layer.variation[direction]);
}

// Training's memory, of both directions: for every row what the cell tapes, c (or all vectors beside h), with
// a projection the cell's output before it, and mean and scale of norms.
template <class Cell, class T>
struct DeviceTape {
  using C = Compute<T>;
  Index gates_stride, cell_stride;  // of a direction; also of `unprojected`
  C *gates = nullptr, *cell = nullptr, *norms = nullptr;
  T* unprojected = nullptr;
  Index bytes;

  DeviceTape(const Layer& layer, int directions, void* base)
      : gates_stride(layer.shape.rows() * Cell::accumulators * layer.shape.hidden),
        cell_stride(layer.shape.rows() * layer.shape.hidden) {
    Arena arena(base);
    if (Cell::taped > 0 && !layer.recompute) gates = arena.take<C>(directions * gates_stride);
    if constexpr (kStaged<Cell>) {
      const Variation<C>& v = variation_of<T>(layer);
      cell_stride = layer.shape.rows() * (v.states - 1) * v.hidden;
      cell = arena.take<C>(directions * cell_stride);
      bytes = arena.used();
      if (!v.norms()) return;
      // The last, and the only one whose rows are no whole lines: it ends where it ends.
      const Index scalars = directions * layer.shape.rows() * kNormScalars;
      norms = arena.take<C>(scalars);
      bytes += scalars * Index(sizeof(C));
      return;
    }
    if (Cell::states > 1) cell = arena.take<C>(directions * cell_stride);
    if (layer.shape.projected()) unprojected = arena.take<T>(directions * cell_stride);
    bytes = arena.used();
  }
};

// A product that is repeated with varying numbers of rows; it is prepared anew only when the number changes.
class RepeatedProduct {
 public:
  RepeatedProduct(Matmul& matmul, const Product& product) : matmul_(matmul), product_(product) {
    product_.m = -1;
  }
  void operator()(Index rows) {
    if (rows == 0) return;
    if (rows != product_.m) {
      product_.m = rows;
      run_ = matmul_.prepare(product_);
    }
    run_();
  }

 private:
  Matmul& matmul_;
  Product product_;
  std::function<void()> run_;
};

// What forward and backward have in common.
template <class Cell, class T>
class Stepwise {
 public:
  Work work() const { return {plan_, scratch_bytes_}; }

 protected:
  using C = Compute<T>;
  static constexpr int A = Cell::accumulators, G = Cell::gates;

  // How many clusters of a resident kernel there can be at once.
  using ActiveClusters = int (*)(const Resident& launch);

  Stepwise(const Layer& layer, Matmul* matmul, StreamHandle stream, ActiveClusters active)
      : layer_(layer),
        shape_(layer.shape),
        matmul_(matmul),
        stream_handle_(stream),
        active_clusters_(active) {}

  template <class... P>
  void choose_plan(Gates gates, const P*... loaded) {
    const bool aligned = (... && (reinterpret_cast<uintptr_t>(loaded) % 16 == 0));
    // A resident kernel asks nobody which rows take a step.
    const bool asks = active_clusters_ && layer_.allows_resident && !layer_.active;
    plan_ = make_plan({layer_.type, shape_, layer_.directions, A, gates, layer_.chunk_bytes, aligned,
                       asks ? kUnitRows<Cell> : 0, asks ? device_arch() : 0, asks, layer_.allows_tf32,
                       active_clusters_});
  }

  Positions positions(int direction) const {
    Positions all(shape_);
    all.shape.reverse = direction == 1;
    return all;
  }
  Index most_active(Index s) const {
    Index most = 0;
    for (int d = 0; d < layer_.directions; ++d) {
      const Index active = positions(d).active(s);
      most = active > most ? active : most;
    }
    return most;
  }
  Index output_stride() const { return layer_.directions * shape_.output; }

  static const T* typed(const void* p) { return static_cast<const T*>(p); }
  static T* typed(void* p) { return static_cast<T*>(p); }

  Biases<T> biases(int direction) const {
    return {typed(layer_.input_bias[direction]), typed(layer_.bias[direction])};
  }

  // Launches `wide`, whose threads take kWide units each, or `one`, over rows x units x `layers`.
  template <class Wide, class One, class Args>
  void launch_over(Index rows, Index units, int layers, int per_thread, Wide wide, One one,
                   const Args& args) const {
    if (rows == 0 || units == 0 || layers == 0) return;
    if (per_thread != kWide && per_thread != 1) throw std::logic_error("units of a thread: no such kernel");
    const Geometry g = geometry(rows, units, per_thread);
    LaunchConfig config;
    config.grid = {g.grid_x, g.grid_y, unsigned(layers)};
    config.block = {g.block_x, g.block_y, 1};
    per_thread > 1 ? launch(config, stream_handle_, wide, args) : launch(config, stream_handle_, one, args);
  }

  // The gates that the input feeds, of `rows` rows of x: gates [rows, A, H] = x W_ih^T.
  void project_input(int direction, Range rows, C* gates) const {
    const Index I = shape_.input, H = shape_.hidden;
    (*matmul_)({1, rows.size(), G * H, I, matrix(gates + Cell::x_first * H, A * H),
                matrix(typed(layer_.x) + rows.first * layer_.x_stride, layer_.x_stride),
                transposed(matrix(typed(layer_.input_weights) + direction * G * H * I, I))});
  }

  // Whether the directions may have other rows at a position, or rows be missing. A step's product then takes
  // rows along that nobody has written: its results for them are not read either, but must not be made of
  // chance.
  bool uneven() const {
    return layer_.lengths || layer_.active ||
           (layer_.directions > 1 && shape_.active(shape_.steps - 1) < shape_.batch);
  }

  Mask mask() const { return {layer_.lengths, layer_.resets, layer_.active, shape_.steps, shape_.batch}; }

  // The rows of positions [s, end) of a direction.
  Range rows_of(int direction, Index s, Index end) const {
    const Index first = direction == 0 ? s : shape_.steps - end;
    return {shape_.offsets[first], shape_.offsets[first + end - s]};
  }

  bool fits(Index s, Index end, Index chunk_rows) const {
    bool all = true;
    for (int d = 0; d < layer_.directions; ++d) all = all && rows_of(d, s, end).size() <= chunk_rows;
    return all;
  }

  static constexpr int kWide = wide_units(TypeOf<T>::value);

  const Layer& layer_;
  const SequenceShape& shape_;
  Matmul* matmul_;
  StreamHandle stream_handle_;
  ActiveClusters active_clusters_;
  Plan plan_{};
  C* gates_ = nullptr;  // [D, rows, A, H], or those of a chunk
  Index gates_stride_ = 0;
  C* recurrent_ = nullptr;  // a step's product: [D, B, G, H] forward, [D, B, P] backward
  Index scratch_bytes_ = 0;
};

template <class Cell, class T>
class StepwiseForward : protected Stepwise<Cell, T> {
 protected:
  using Base = Stepwise<Cell, T>;
  using Base::A, Base::G, Base::kWide, Base::layer_, Base::shape_, Base::typed;
  using Base::gates_, Base::gates_stride_, Base::plan_, Base::recurrent_, Base::scratch_bytes_;
  using typename Base::C;

 public:
  StepwiseForward(const ForwardLayer& layer, Matmul* matmul, StreamHandle stream,
                  typename Base::ActiveClusters active = nullptr)
      : Base(layer, matmul, stream, active),
        layer_forward_(layer),
        tape_(layer, layer.tape ? layer.directions : 0, layer.tape) {
    const Index D = layer.directions, B = shape_.batch, H = shape_.hidden, P = shape_.output;
    this->choose_plan(tape_.gates ? Gates::taped : Gates::passing, layer.input_bias[0], layer.input_bias[1],
                      layer.bias[0], layer.bias[1], layer.cells, layer.h, layer.h_wide, layer.c, layer.y);
    Arena arena(layer.scratch);
    gates_ = tape_.gates;
    gates_stride_ = tape_.gates_stride;
    if (!gates_) {
      gates_stride_ = plan_.chunk_rows * A * H;
      gates_ = arena.take<C>(D * gates_stride_);
    }
    if (plan_.driver == Driver::stepwise) recurrent_ = arena.take<C>(D * B * G * H);
    if (projects<Cell>(shape_)) {
      output_ = arena.take<T>(D * B * H);
      projected_ = arena.take<C>(D * B * P);
    } else if (sizeof(T) != sizeof(C)) {
      h_wide_ = layer.h_wide ? static_cast<C*>(layer.h_wide) : arena.take<C>(D * B * P);
    }
    scratch_bytes_ = arena.used();
  }

  using Base::work;

  void run() const {
    const Index D = layer_.directions, B = shape_.batch, H = shape_.hidden, P = shape_.output;
    RepeatedProduct recur(
        *this->matmul_,
        {D, 0, G * H, P, matrix(recurrent_, G * H, B * G * H), matrix(typed(layer_forward_.h), P, B * P),
         transposed(matrix(typed(layer_.recurrent_weights), P, G * H * P))});
    RepeatedProduct project(*this->matmul_,
                            {D, 0, P, H, matrix(projected_, P, B * P), matrix(output_, H, B * H),
                             transposed(matrix(typed(layer_.projection), H, P * H))});
    if (this->uneven() && output_) clear(output_, D * B * H, this->stream_handle_);
    // Of a step to the next only the rows differ.
    ForwardStep<T> step = step_arguments();
    ProjectedStep<T> store = store_arguments();
    for_steps([&](Index s, const Range(&chunk)[kMaxDirections]) {
      const Index rows = this->most_active(s);
      recur(rows);
      fill_rows(s, chunk, step.at);
      this->launch_over(rows, H, layer_.directions, plan_.units, &forward_step<Cell, T, kWide>,
                        &forward_step<Cell, T, 1>, step);
      if (!projects<Cell>(shape_)) return;
      project(rows);
      fill_rows(s, chunk, store.at);
      this->launch_over(rows, P, layer_.directions, plan_.units, &store_projected<T, kWide>,
                        &store_projected<T, 1>, store);
    });
  }

 protected:
  // body(position, the chunk of rows of each direction whose input is projected).
  template <class Body>
  void for_steps(Body body) const {
    for (Index s = 0; s < shape_.steps;) {
      Range chunk[kMaxDirections];
      const Index end = start_chunk(s, chunk);
      for (; s < end; ++s) body(s, chunk);
    }
  }

  // Projects the input of the positions from s on that the gates have room for; returns the first after them.
  Index start_chunk(Index s, Range (&chunk)[kMaxDirections]) const {
    Index end = s + 1;
    while (end < shape_.steps && this->fits(s, end + 1, plan_.chunk_rows)) ++end;
    for (int d = 0; d < layer_.directions; ++d) {
      chunk[d] = this->rows_of(d, s, end);
      this->project_input(d, chunk[d], gates_ + d * gates_stride_);
    }
    return end;
  }

  void fill_rows(Index s, const Range (&chunk)[kMaxDirections], ForwardRows (&at)[kMaxDirections]) const {
    for (int d = 0; d < layer_.directions; ++d) {
      const Positions in = this->positions(d);
      // States that go on have the position before the first in the call before.
      const Index before = s == 0 && layer_forward_.h_wide ? in.active(0) : in.active(s - 1);
      at[d] = {in.step(s), in.active(s), before, in.row(s, 0), in.row(s, 0) - chunk[d].first};
    }
  }

  ForwardStep<T> step_arguments() const {
    ForwardStep<T> args{};
    args.mask = this->mask();
    for (int d = 0; d < layer_.directions; ++d) args.biases[d] = this->biases(d);
    args.batch = shape_.batch;
    args.hidden = shape_.hidden;
    args.gates = gates_;
    args.gates_stride = gates_stride_;
    args.tapes_gates = tape_.gates != nullptr;
    args.recurrent = recurrent_;
    args.h = typed(layer_forward_.h);
    args.h_wide = h_wide_;
    args.c = static_cast<C*>(layer_forward_.c);
    args.y = typed(layer_forward_.y);
    args.y_stride = this->output_stride();
    args.directions = layer_.directions;
    args.cells = typed(layer_forward_.cells);
    args.cell = tape_.cell;
    args.cell_stride = tape_.cell_stride;
    args.output = output_;
    args.unprojected = tape_.unprojected;
    args.unprojected_stride = tape_.cell_stride;
    return args;
  }

  ProjectedStep<T> store_arguments() const {
    ProjectedStep<T> args{};
    args.mask = this->mask();
    args.batch = shape_.batch;
    args.output = shape_.output;
    args.product = projected_;
    args.h = typed(layer_forward_.h);
    args.h_wide = static_cast<C*>(layer_forward_.h_wide);
    args.y = typed(layer_forward_.y);
    args.y_stride = this->output_stride();
    return args;
  }

  const ForwardLayer& layer_forward_;
  DeviceTape<Cell, T> tape_;
  C* h_wide_ = nullptr;     // [D, B, H]
  T* output_ = nullptr;     // [D, B, H], before the projection
  C* projected_ = nullptr;  // [D, B, P]
};

template <class Cell, class T>
class StepwiseBackward : protected Stepwise<Cell, T> {
 protected:
  using Base = Stepwise<Cell, T>;
  using Base::A, Base::G, Base::kWide, Base::layer_, Base::shape_, Base::typed;
  using Base::gates_, Base::gates_stride_, Base::plan_, Base::recurrent_, Base::scratch_bytes_;
  using typename Base::C;

 public:
  StepwiseBackward(const BackwardLayer& layer, Matmul* matmul, StreamHandle stream,
                   typename Base::ActiveClusters active = nullptr)
      : Base(layer, matmul, stream, active),
        layer_backward_(layer),
        tape_(layer, layer.directions, layer.tape),
        rebuilds_(Cell::taped > 0 && layer.recompute) {
    const Index D = layer.directions, B = shape_.batch, H = shape_.hidden, P = shape_.output;
    const Index rows = shape_.rows();
    this->choose_plan(rebuilds_ ? Gates::rebuilt : Gates::taped, layer.input_bias[0], layer.input_bias[1],
                      layer.bias[0], layer.bias[1], layer.y, layer.dy, layer.dcells, layer.h0, layer.c0);
    Arena arena(layer.scratch);
    gates_ = tape_.gates;
    if (plan_.driver == Driver::stepwise) recurrent_ = arena.take<C>(D * B * P);
    gradients_ = arena.take<T>(D * rows * A * H);
    if (plan_.driver == Driver::stepwise) now_ = arena.take<T>(now_scalars());
    h_before_ = arena.take<T>(D * rows * P);
    partial_ = arena.take<C>(D * shares_of(rows) * 2 * A * H);
    if (projects<Cell>(shape_)) {
      output_ = arena.take<C>(D * B * H);
      projected_ = arena.take<T>(D * rows * P);
      projected_now_ = arena.take<T>(D * B * P);
    }
    gates_stride_ = tape_.gates_stride;
    if (rebuilds_) {
      gates_stride_ = plan_.chunk_rows * A * H;
      gates_ = arena.take<C>(D * gates_stride_);
      if (!kStaged<Cell>) rebuilt_products_ = arena.take<C>(plan_.chunk_rows * G * H);
      if (Cell::states > 1) c_before_ = arena.take<C>(plan_.chunk_rows * H);
    }
    scratch_bytes_ = arena.used();
  }

  using Base::work;

  void run() const {
    start();
    recurrence();
    gradients_of_rows();
  }

 protected:
  // Of what the step's product reads; of a staged layer what h feeds alone.
  Index now_scalars() const {
    return layer_.directions * shape_.batch * (kStaged<Cell> ? G : A) * shape_.hidden;
  }
  void start() const {
    for (int d = 0; d < layer_.directions; ++d) {
      if (reads_h_before(d)) {
        gather(d, {0, shape_.steps}, 0, shape_.output, typed(layer_backward_.y) + d * shape_.output,
               this->output_stride(), typed(layer_backward_.h0) + d * shape_.batch * shape_.output,
               h_before(d));
      }
    }
    if (now_ && this->uneven()) {
      clear(now_, now_scalars(), this->stream_handle_);
      if (projected_now_)
        clear(projected_now_, layer_.directions * shape_.batch * shape_.output, this->stream_handle_);
    }
  }
  // What is summed over all rows, and what each row's input gets.
  void gradients_of_rows() const {
    for (int d = 0; d < layer_.directions; ++d) weight_gradients(d);
    finish();
  }
  void finish() const {
    bias_gradients();
    if (layer_backward_.dx) {
      for (int d = 0; d < layer_.directions; ++d) input_gradient(d);
    }
  }

  bool reads_h_before(int direction) const { return rebuilds_ || layer_backward_.drecurrent[direction]; }
  T* h_before(int direction) const { return h_before_ + direction * shape_.rows() * shape_.output; }
  T* gradients_of(int direction) const { return gradients_ + direction * tape_.gates_stride; }

  // What the rows at these positions come from; row `origin` is the first of `out`.
  template <class From, class Initial, class To>
  void gather(int direction, Range positions, Index origin, Index units, const From* rows, Index stride,
              const Initial* initial, To* out) const {
    const Positions in = this->positions(direction);
    for (Index s = positions.first; s < positions.last; s += kGathered) {
      Gather<From, Initial, To> args{};
      args.mask = this->mask();
      args.direction = direction;
      args.units = units;
      args.rows = rows;
      args.stride = stride;
      args.initial = initial;
      args.out = out;
      int count = 0;
      Index most = 0;
      for (; count < kGathered && s + count < positions.last; ++count) {
        const Index at = s + count;
        args.at[count] = {in.step(at), in.row(at, 0) - origin, in.active(at), at > 0 ? in.row(at - 1, 0) : 0,
                          in.active(at - 1)};
        most = in.active(at) > most ? in.active(at) : most;
      }
      this->launch_over(most, units, count, plan_.units, &gather_previous<From, Initial, To, kWide>,
                        &gather_previous<From, Initial, To, 1>, args);
    }
  }

  // Gates of the positions before `end` that there is room for, in each direction's rows of them; returns the
  // first of those positions.
  Index rebuild(Index end, Range (&chunk)[kMaxDirections]) const {
    Index s = end - 1;
    while (s > 0 && this->fits(s - 1, end, plan_.chunk_rows)) --s;
    for (int d = 0; d < layer_.directions; ++d) {
      chunk[d] = this->rows_of(d, s, end);
      rebuild(d, {s, end}, chunk[d]);
    }
    return s;
  }

  void rebuild(int d, Range positions, Range rows) const {
    const Index H = shape_.hidden, P = shape_.output;
    const T* const h = h_before(d) + rows.first * P;
    if (c_before_) {
      gather(d, positions, rows.first, H, tape_.cell + d * tape_.cell_stride, H,
             static_cast<const C*>(layer_backward_.c0) + d * shape_.batch * H, c_before_);
    }
    C* const gates = gates_ + d * gates_stride_;
    this->project_input(d, rows, gates);
    const Matrix out =
        kStaged<Cell> ? matrix(gates + Cell::h_first * H, A * H) : matrix(rebuilt_products_, G * H);
    (*this->matmul_)({1, rows.size(), G * H, P, out, matrix(h, P),
                      transposed(matrix(typed(layer_.recurrent_weights) + d * G * H * P, P))});
    if constexpr (!kStaged<Cell>) {
      const Rebuild<T> args{
          rows.size(), H, this->biases(d), gates, rebuilt_products_, projects<Cell>(shape_) ? nullptr : h,
          c_before_};
      this->launch_over(rows.size(), H, 1, plan_.units, &rebuild_gates<Cell, T, kWide>,
                        &rebuild_gates<Cell, T, 1>, args);
    }
  }

  // Every position, last first, and what is before the first: the gradients of the initial states.
  void recurrence() const {
    const Index D = layer_.directions, B = shape_.batch, H = shape_.hidden, P = shape_.output;
    RepeatedProduct recur(*this->matmul_, {D, 0, P, G * H, matrix(recurrent_, P, B * P),
                                           matrix(now_ + Cell::h_first * H, A * H, B * A * H),
                                           matrix(typed(layer_.recurrent_weights), P, G * H * P)});
    RepeatedProduct unproject(*this->matmul_,
                              {D, 0, H, P, matrix(output_, H, B * H), matrix(projected_now_, P, B * P),
                               matrix(typed(layer_.projection), H, P * H)});
    BackwardStep<T> step = step_arguments();
    ProjectedGradient<T> output = output_arguments();
    for_steps([&](Index s, const Range(&chunk)[kMaxDirections]) {
      const Index after = this->most_active(s + 1), active = this->most_active(s);
      const Index rows = active > after ? active : after;
      recur(after);
      fill_rows(s, chunk, step.at);
      if (projects<Cell>(shape_)) {
        for (int d = 0; d < layer_.directions; ++d) output.at[d] = step.at[d];
        this->launch_over(rows, P, layer_.directions, plan_.units, &projected_gradient<T, kWide>,
                          &projected_gradient<T, 1>, output);
        unproject(active);
      }
      if (s >= 0 || !projects<Cell>(shape_)) {
        this->launch_over(rows, H, layer_.directions, plan_.units, &backward_step<Cell, T, kWide>,
                          &backward_step<Cell, T, 1>, step);
      }
    });
  }

  // body(position, the rows of each direction whose gates are there; all of them if they were taped), the
  // last position first, and what is before the first.
  template <class Body>
  void for_steps(Body body) const {
    Range chunk[kMaxDirections] = {};
    Index rebuilt = rebuilds_ ? shape_.steps : 0;
    for (Index s = shape_.steps - 1; s >= -1; --s) {
      if (s >= 0 && s < rebuilt) rebuilt = rebuild(s + 1, chunk);
      body(s, chunk);
    }
  }

  void fill_rows(Index s, const Range (&chunk)[kMaxDirections], BackwardRows (&at)[kMaxDirections]) const {
    for (int d = 0; d < layer_.directions; ++d) {
      const Positions in = this->positions(d);
      const Index row = s >= 0 ? in.row(s, 0) : 0, before = s > 0 ? in.row(s - 1, 0) : 0;
      at[d] = {s >= 0 ? in.step(s) : -1, in.active(s), in.active(s + 1), in.active(s - 1), row, before,
               row - chunk[d].first};
    }
  }

  ProjectedGradient<T> output_arguments() const {
    ProjectedGradient<T> args{};
    args.mask = this->mask();
    args.batch = shape_.batch;
    args.output = shape_.output;
    args.dy = typed(layer_backward_.dy);
    args.y_stride = this->output_stride();
    args.recurrent = recurrent_;
    args.dh = static_cast<C*>(layer_backward_.dh);
    args.gradients = projected_;
    args.gradients_stride = shape_.rows() * shape_.output;
    args.now = projected_now_;
    return args;
  }

  BackwardStep<T> step_arguments() const {
    BackwardStep<T> args{};
    args.mask = this->mask();
    args.batch = shape_.batch;
    args.hidden = shape_.hidden;
    args.gates = gates_;
    args.gates_stride = gates_stride_;
    args.gradients_stride = tape_.gates_stride;
    args.cell = tape_.cell;
    args.cell_stride = tape_.cell_stride;
    args.y = typed(layer_backward_.y);
    args.y_stride = this->output_stride();
    args.h0 = typed(layer_backward_.h0);
    args.c0 = static_cast<const C*>(layer_backward_.c0);
    args.directions = layer_.directions;
    args.dy = typed(layer_backward_.dy);
    args.dcells = typed(layer_backward_.dcells);
    args.recurrent = recurrent_;
    args.output = output_;
    args.dh = static_cast<C*>(layer_backward_.dh);
    args.dc = static_cast<C*>(layer_backward_.dc);
    args.gradients = gradients_;
    args.now = now_;
    return args;
  }

  // Body(first accumulator, its gate, how many): the accumulators from `first` on, in runs that are also
  // neighbours in torch's order of gates.
  template <class Body>
  static void for_runs(int first, Body body) {
    for (int a = first, n; a < first + G; a += n) {
      for (n = 1; a + n < first + G && Cell::gate_of[a + n] == Cell::gate_of[a] + n;) ++n;
      body(a, Cell::gate_of[a], n);
    }
  }

  // dW [G * H, columns] = (gate gradients)^T right, for the accumulators from `first` on.
  void outer(int direction, int first, const Matrix& right, Index columns, void* out) const {
    if (!out) return;
    const Index H = shape_.hidden;
    for_runs(first, [&](int a, int gate, int n) {
      (*this->matmul_)({1, n * H, columns, shape_.rows(), matrix(typed(out) + gate * H * columns, columns),
                        transposed(matrix(gradients_of(direction) + a * H, A * H)), right});
    });
  }
  void input_weight_gradients(int d) const {
    outer(d, Cell::x_first, matrix(typed(layer_.x), layer_.x_stride), shape_.input,
          layer_backward_.dinput[d]);
  }

  void weight_gradients(int d) const {
    const Index H = shape_.hidden, P = shape_.output, rows = shape_.rows();
    input_weight_gradients(d);
    outer(d, Cell::h_first, matrix(h_before(d), P), P, layer_backward_.drecurrent[d]);
    if (!layer_backward_.dprojection[d]) return;
    (*this->matmul_)({1, P, H, rows, matrix(typed(layer_backward_.dprojection[d]), H),
                      transposed(matrix(projected_ + d * rows * P, P)),
                      matrix(tape_.unprojected + d * tape_.cell_stride, H)});
  }

  void bias_gradients() const {
    BiasSums<T> args{shape_.rows(),
                     shape_.hidden,
                     shares_of(shape_.rows()),
                     gradients_,
                     tape_.gates_stride,
                     partial_,
                     {},
                     {}};
    bool wanted = false;
    for (int d = 0; d < layer_.directions; ++d) {
      args.input[d] = typed(layer_backward_.dinput_bias[d]);
      args.recurrent[d] = typed(layer_backward_.dbias[d]);
      wanted = wanted || args.input[d] || args.recurrent[d];
    }
    const Index columns = A * shape_.hidden;
    if (!wanted || columns == 0) return;
    LaunchConfig config;
    config.block = {kBlockThreads, 1, 1};
    config.grid = {unsigned((columns + kBlockThreads - 1) / kBlockThreads), unsigned(args.shares),
                   unsigned(layer_.directions)};
    if (args.shares > 0) launch(config, this->stream_handle_, &sum_shares<T>, args, columns);
    config.grid.y = 1;
    launch(config, this->stream_handle_, &store_bias_gradients<Cell, T>, args);
  }

  void input_gradient(int d) const {
    const Index H = shape_.hidden, I = shape_.input;
    (*this->matmul_)({1, shape_.rows(), I, G * H, matrix(typed(layer_backward_.dx), layer_.x_stride),
                      matrix(gradients_of(d) + Cell::x_first * H, A * H),
                      matrix(typed(layer_.input_weights) + d * G * H * I, I), d > 0});
  }

  const BackwardLayer& layer_backward_;
  DeviceTape<Cell, T> tape_;
  bool rebuilds_;
  // Of the gates: [D, rows, A, H] and of the current position [D, B, A, H].
  T *gradients_, *now_ = nullptr;
  T* h_before_;          // [D, rows, P]
  C* partial_;           // [D, shares, 2, A, H]
  C* output_ = nullptr;  // gradient of the cell's output before its projection [D, B, H]
  T *projected_ = nullptr, *projected_now_ = nullptr;  // of the projected: [D, rows, P], [D, B, P]
  C *rebuilt_products_ = nullptr,
    *c_before_ = nullptr;  // of a chunk and one direction: [rows, G, H], [rows, H]
};

// Forward and Backward are the driver's classes; input_gates as in CellDrivers.
template <class Cell, class T, class Forward, class Backward>
constexpr CellDrivers drivers_of(const int* input_gates) {
  return {input_gates,
          [](const Layer& layer) { return DeviceTape<Cell, T>(layer, layer.directions, nullptr).bytes; },
          [](const ForwardLayer& layer) { return Forward(layer, nullptr, nullptr).work(); },
          [](const ForwardLayer& layer, Matmul& matmul, StreamHandle stream) {
            Forward(layer, &matmul, stream).run();
          },
          [](const BackwardLayer& layer) { return Backward(layer, nullptr, nullptr).work(); },
          [](const BackwardLayer& layer, Matmul& matmul, StreamHandle stream) {
            Backward(layer, &matmul, stream).run();
          }};
}

}  // namespace rnnfused::cuda
