// The stepwise driver: the input projection of all steps as one product, then a product and a kernel per
// step, both directions in each; in backward the products for the weights and the input after the loop. It
// runs on every GPU, with every size and type.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/gradients.cuh"

namespace rnnfused::cuda {

template <class Cell, class T>
class StepwiseForward : protected LayerCall<Cell, T> {
 protected:
  using Base = LayerCall<Cell, T>;
  using Base::A, Base::G, Base::kWide, Base::layer_, Base::shape_, Base::typed;
  using Base::gates_, Base::gates_stride_, Base::plan_, Base::recurrent_, Base::scratch_bytes_;
  using typename Base::C, typename Base::Gate;

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
      gates_ = arena.take<Gate>(D * gates_stride_);
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
    ForwardStep<Cell, T> step = step_arguments();
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

  ForwardStep<Cell, T> step_arguments() const {
    ForwardStep<Cell, T> args{};
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
class StepwiseBackward : protected Gradients<Cell, T> {
 protected:
  using Base = Gradients<Cell, T>;
  using Base::A, Base::G, Base::kWide, Base::layer_, Base::shape_, Base::typed;
  using Base::gates_, Base::gates_stride_, Base::plan_, Base::recurrent_, Base::scratch_bytes_;
  using Base::gradients_, Base::layer_backward_, Base::projected_, Base::rebuilds_, Base::tape_;
  using typename Base::C;

 public:
  StepwiseBackward(const BackwardLayer& layer, Matmul* matmul, StreamHandle stream,
                   typename Base::ActiveClusters active = nullptr)
      : Base(layer, matmul, stream, active) {
    if (plan_.driver != Driver::stepwise) return;
    const Index D = layer.directions, B = shape_.batch, P = shape_.output;
    Arena arena(layer.scratch);
    arena.take<char>(scratch_bytes_);
    recurrent_ = arena.take<C>(D * B * P);
    now_ = arena.take<T>(now_scalars());
    if (projects<Cell>(shape_)) {
      output_ = arena.take<C>(D * B * shape_.hidden);
      projected_now_ = arena.take<T>(D * B * P);
    }
    scratch_bytes_ = arena.used();
  }

  using Base::work;

  void run() const {
    start();
    recurrence();
    this->gradients_of_rows();
  }

 protected:
  // Of what the step's product reads; of a staged layer what h feeds alone.
  Index now_scalars() const {
    return layer_.directions * shape_.batch * (kStaged<Cell> ? G : A) * shape_.hidden;
  }
  void start() const {
    this->gather_h_before();
    if (!this->uneven()) return;
    clear(now_, now_scalars(), this->stream_handle_);
    if (projected_now_)
      clear(projected_now_, layer_.directions * shape_.batch * shape_.output, this->stream_handle_);
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
    BackwardStep<Cell, T> step = step_arguments();
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
      if (s >= 0 && s < rebuilt) rebuilt = this->rebuild(s + 1, chunk);
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

  BackwardStep<Cell, T> step_arguments() const {
    BackwardStep<Cell, T> args{};
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

  T* now_ = nullptr;            // gradients of the gates of the current position [D, B, A, H]
  C* output_ = nullptr;         // gradient of the cell's output before its projection [D, B, H]
  T* projected_now_ = nullptr;  // of the projected [D, B, P]
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
