// What every driver's call on a layer has in common, forward and backward: where its memory is, its plan, its
// products and launches, and which rows a position has.
#pragma once

#include "core/staged.h"
#include "core/stream.h"
#include "core/variation.h"
#include "cuda/drivers.h"
#include "cuda/gates.cuh"
#include "cuda/launch.cuh"
#include "cuda/mask.cuh"
#include "cuda/resident.h"

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
  GateOf<Cell, T>* gates = nullptr;
  C *cell = nullptr, *norms = nullptr;
  T* unprojected = nullptr;
  Index bytes;

  DeviceTape(const Layer& layer, int directions, void* base)
      : gates_stride(layer.shape.rows() * Cell::accumulators * layer.shape.hidden),
        cell_stride(layer.shape.rows() * layer.shape.hidden) {
    Arena arena(base);
    if (Cell::taped > 0 && !layer.recompute) gates = arena.take<GateOf<Cell, T>>(directions * gates_stride);
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

template <class Cell, class T>
class LayerCall {
 public:
  Work work() const { return {plan_, scratch_bytes_}; }

 protected:
  using C = Compute<T>;
  using Gate = GateOf<Cell, T>;
  static constexpr int A = Cell::accumulators, G = Cell::gates;

  // How many clusters of a resident kernel there can be at once.
  using ActiveClusters = int (*)(const Resident& launch);

  LayerCall(const Layer& layer, Matmul* matmul, StreamHandle stream, ActiveClusters active)
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
    plan_ = make_plan({layer_.type, shape_, layer_.directions, A, gates, TypeOf<Gate>::value,
                       layer_.chunk_bytes, aligned, asks ? kUnitRows<Cell> : 0, asks ? device_arch() : 0,
                       asks, layer_.allows_tf32, active_clusters_});
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
  void project_input(int direction, Range rows, Gate* gates) const {
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
  Gate* gates_ = nullptr;  // [D, rows, A, H], or those of a chunk
  Index gates_stride_ = 0;
  C* recurrent_ = nullptr;  // a step's product: [D, B, G, H] forward, [D, B, P] backward
  Index scratch_bytes_ = 0;
};

}  // namespace rnnfused::cuda
