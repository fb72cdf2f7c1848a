// A layer by the driver that its plan names: step by step, or with the recurrence as one launch of a resident
// kernel between the products that both have in common.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "cuda/stepwise.cuh"

namespace rnnfused::cuda {

// Numbers that the host knows travel as a kernel's parameters: nothing is copied, so that a CUDA graph can
// hold the call.
struct Numbers {
  static constexpr int kMost = 960;  // parameters may take 4 KB
  int values[kMost];
  int count;
  int* out;
};
template <int Threads>
__global__ void __launch_bounds__(Threads) store_numbers(const __grid_constant__ Numbers n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n.count) n.out[i] = n.values[i];
}

// What a resident kernel is told of packed sequences (Walk::offsets), where they say more than how large the
// batch is.
class Offsets {
 public:
  Offsets(const SequenceShape& shape, Arena& arena) : shape_(shape) {
    if (shape.active(shape.steps - 1) < shape.batch) data_ = arena.take<int>(count());
  }

  // Puts them there.
  const int* store(StreamHandle stream) const {
    if (!data_) return nullptr;
    std::vector<int> all;
    all.reserve(size_t(count()));
    for (Index t = 0; t <= shape_.steps; ++t) all.push_back(int(shape_.offsets[t]));
    Index length = shape_.steps;
    for (Index b = 0; b < shape_.batch; ++b) {
      while (shape_.active(length - 1) <= b) --length;
      all.push_back(int(length));
    }
    for (Index first = 0; first < count(); first += Numbers::kMost) {
      Numbers numbers{};
      numbers.out = data_ + first;
      numbers.count = int(std::min<Index>(Numbers::kMost, count() - first));
      std::copy_n(all.begin() + first, numbers.count, numbers.values);
      LaunchConfig config;
      config.block = {kBlockThreads, 1, 1};
      config.grid = {unsigned(Numbers::kMost + kBlockThreads - 1) / kBlockThreads, 1, 1};
      launch(config, stream, &store_numbers<int(kBlockThreads)>, numbers);
    }
    return data_;
  }

 private:
  Index count() const { return shape_.steps + 1 + shape_.batch; }

  const SequenceShape& shape_;
  int* data_ = nullptr;
};

// What both ways have in common: Stepwise is the driver that this one takes the place of, Arguments are the
// resident kernels'.
template <class Cell, class T, class Stepwise, class Arguments>
class Planned : protected Stepwise {
 public:
  using Stepwise::work;

 protected:
  using Stepwise::layer_, Stepwise::plan_, Stepwise::scratch_bytes_, Stepwise::shape_,
      Stepwise::stream_handle_;
  using Launch = ResidentLaunch<Cell, Arguments>;

  template <class LayerOfWay>
  Planned(const LayerOfWay& layer, Matmul* matmul, StreamHandle stream)
      : Stepwise(layer, matmul, stream, active_clusters()) {
    Arena arena(layer.scratch);
    arena.take<char>(scratch_bytes_);
    if (plan_.driver == Driver::resident) offsets_.emplace(shape_, arena);
    scratch_bytes_ = arena.used();
  }

  // What asks for the kernels, where there are any.
  static constexpr typename Stepwise::ActiveClusters active_clusters() {
    if constexpr (kHasResident<Cell, T>) {
      return &Launch::active;
    } else {
      return nullptr;
    }
  }

  // Calls body where the plan is a resident one, else the stepwise driver.
  template <class Body>
  void run_planned(Body body) const {
    if constexpr (kHasResident<Cell, T>) {
      if (plan_.driver == Driver::resident) return body();
    }
    Stepwise::run();
  }

  Arguments arguments() const {
    Arguments args{};
    args.walk = {
        shape_.steps, shape_.batch, offsets_->store(stream_handle_), layer_.lengths, layer_.resets, 0, 0};
    args.hidden = shape_.hidden;
    args.directions = layer_.directions;
    args.weights = Stepwise::typed(layer_.recurrent_weights);
    return args;
  }

  // The positions whose rows of each direction are the chunk, in one launch.
  void run(Range positions, const Range (&chunk)[kMaxDirections], Arguments& args) const {
    args.walk.begin = positions.first, args.walk.end = positions.last;
    for (int d = 0; d < layer_.directions; ++d) args.first_row[d] = chunk[d].first;
    Launch::start(plan_.resident, args, stream_handle_);
  }

 private:
  std::optional<Offsets> offsets_;
};

template <class Cell, class T>
class PlannedForward : Planned<Cell, T, StepwiseForward<Cell, T>, ResidentForward<Cell, T>> {
  using Base = Planned<Cell, T, StepwiseForward<Cell, T>, ResidentForward<Cell, T>>;
  using Base::layer_, Base::shape_, Base::stream_handle_;

 public:
  PlannedForward(const ForwardLayer& layer, Matmul* matmul, StreamHandle stream)
      : Base(layer, matmul, stream) {}

  using Base::work;

  void run() const {
    this->run_planned([&] {
      ResidentForward<Cell, T> args = arguments();
      // Beyond their lengths the kernel writes nothing.
      if (layer_.lengths) {
        clear(args.y, shape_.rows() * this->output_stride(), stream_handle_);
        if (args.cells) clear(args.cells, shape_.rows() * this->output_stride(), stream_handle_);
      }
      for (Index s = 0, end; s < shape_.steps; s = end) {
        Range chunk[kMaxDirections];
        end = this->start_chunk(s, chunk);
        args.continues = s > 0;
        Base::run({s, end}, chunk, args);
      }
    });
  }

 private:
  ResidentForward<Cell, T> arguments() const {
    const ForwardStep<Cell, T> step = this->step_arguments();
    ResidentForward<Cell, T> args = Base::arguments();
    for (int d = 0; d < layer_.directions; ++d) args.biases[d] = step.biases[d];
    args.gates = step.gates;
    args.gates_stride = step.gates_stride;
    args.tapes_gates = step.tapes_gates;
    args.h = step.h;
    args.h_wide = step.h_wide;
    args.c = step.c;
    args.y = step.y;
    args.cells = step.cells;
    args.cell = step.cell;
    args.cell_stride = step.cell_stride;
    return args;
  }
};

template <class Cell, class T>
class PlannedBackward : Planned<Cell, T, StepwiseBackward<Cell, T>, ResidentBackward<Cell, T>> {
  using Base = Planned<Cell, T, StepwiseBackward<Cell, T>, ResidentBackward<Cell, T>>;
  using Base::layer_, Base::shape_, Base::stream_handle_;

 public:
  PlannedBackward(const BackwardLayer& layer, Matmul* matmul, StreamHandle stream)
      : Base(layer, matmul, stream) {}

  using Base::work;

  void run() const {
    this->run_planned([&] {
      this->gather_h_before();
      ResidentBackward<Cell, T> args = arguments();
      // Beyond their lengths the kernel writes nothing, but products over all rows take these along.
      if (layer_.lengths) clear(args.gradients, layer_.directions * args.gradients_stride, stream_handle_);
      for (Index end = shape_.steps, begin; end > 0; end = begin) {
        Range chunk[kMaxDirections] = {};
        begin = this->rebuilds_ ? this->rebuild(end, chunk) : 0;
        Base::run({begin, end}, chunk, args);
      }
      this->gradients_of_rows();
    });
  }

 private:
  ResidentBackward<Cell, T> arguments() const {
    const BackwardStep<Cell, T> step = this->step_arguments();
    ResidentBackward<Cell, T> args = Base::arguments();
    args.gates = step.gates;
    args.gates_stride = step.gates_stride;
    args.cell = step.cell;
    args.cell_stride = step.cell_stride;
    args.y = step.y;
    args.h0 = step.h0;
    args.c0 = step.c0;
    args.dy = step.dy;
    args.dcells = step.dcells;
    args.dh = step.dh;
    args.dc = step.dc;
    args.gradients = step.gradients;
    args.gradients_stride = step.gradients_stride;
    return args;
  }
};

}  // namespace rnnfused::cuda
