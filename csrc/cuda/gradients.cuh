// What a layer's backward has beside the recurrence, whichever driver runs that: what each row came from,
// gates rebuilt of it, and once the gate gradients of all rows are there, products over all rows: gradients
// of weights, biases and input.
#pragma once

#include "cuda/call.cuh"
#include "cuda/history.cuh"
#include "cuda/sums.cuh"

namespace rnnfused::cuda {

template <class Cell, class T>
class Gradients : protected LayerCall<Cell, T> {
 protected:
  using Base = LayerCall<Cell, T>;
  using Base::A, Base::G, Base::kWide, Base::layer_, Base::shape_, Base::typed;
  using Base::gates_, Base::gates_stride_, Base::plan_, Base::scratch_bytes_;
  using typename Base::C, typename Base::Gate;

 public:
  Gradients(const BackwardLayer& layer, Matmul* matmul, StreamHandle stream,
            typename Base::ActiveClusters active)
      : Base(layer, matmul, stream, active),
        layer_backward_(layer),
        tape_(layer, layer.directions, layer.tape),
        rebuilds_(Cell::taped > 0 && layer.recompute) {
    const Index D = layer.directions, H = shape_.hidden, P = shape_.output, rows = shape_.rows();
    this->choose_plan(rebuilds_ ? Gates::rebuilt : Gates::taped, layer.input_bias[0], layer.input_bias[1],
                      layer.bias[0], layer.bias[1], layer.y, layer.dy, layer.dcells, layer.h0, layer.c0);
    Arena arena(layer.scratch);
    gates_ = tape_.gates;
    gates_stride_ = tape_.gates_stride;
    gradients_ = arena.take<T>(D * rows * A * H);
    h_before_ = arena.take<T>(D * rows * P);
    partial_ = arena.take<C>(D * shares_of(rows) * 2 * A * H);
    if (projects<Cell>(shape_)) projected_ = arena.take<T>(D * rows * P);
    if (rebuilds_) {
      gates_stride_ = plan_.chunk_rows * A * H;
      gates_ = arena.take<Gate>(D * gates_stride_);
      if (!kStaged<Cell>) rebuilt_products_ = arena.take<C>(plan_.chunk_rows * G * H);
      if (Cell::states > 1) c_before_ = arena.take<C>(plan_.chunk_rows * H);
    }
    scratch_bytes_ = arena.used();
  }

  using Base::work;

 protected:
  // What every row came from, in this direction's order.
  void gather_h_before() const {
    for (int d = 0; d < layer_.directions; ++d) {
      if (reads_h_before(d)) {
        gather(d, {0, shape_.steps}, 0, shape_.output, typed(layer_backward_.y) + d * shape_.output,
               this->output_stride(), typed(layer_backward_.h0) + d * shape_.batch * shape_.output,
               h_before(d));
      }
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
    Gate* const gates = gates_ + d * gates_stride_;
    this->project_input(d, rows, gates);
    const Matrix out =
        kStaged<Cell> ? matrix(gates + Cell::h_first * H, A * H) : matrix(rebuilt_products_, G * H);
    (*this->matmul_)({1, rows.size(), G * H, P, out, matrix(h, P),
                      transposed(matrix(typed(layer_.recurrent_weights) + d * G * H * P, P))});
    if constexpr (!kStaged<Cell>) {
      const Rebuild<Cell, T> args{
          rows.size(), H, this->biases(d), gates, rebuilt_products_, projects<Cell>(shape_) ? nullptr : h,
          c_before_};
      this->launch_over(rows.size(), H, 1, plan_.units, &rebuild_gates<Cell, T, kWide>,
                        &rebuild_gates<Cell, T, 1>, args);
    }
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
  T* gradients_;            // of the gates [D, rows, A, H]
  T* h_before_;             // [D, rows, P]
  C* partial_;              // [D, shares, 2, A, H]
  T* projected_ = nullptr;  // gradient of the projected [D, rows, P]
  // Of a chunk and one direction: [rows, G, H], [rows, H].
  C *rebuilt_products_ = nullptr, *c_before_ = nullptr;
};

}  // namespace rnnfused::cuda
