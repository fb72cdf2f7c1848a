// One layer's arguments as the kernels read them, alive until the call ends.
#pragma once

#include <ATen/DimVector.h>

#include <memory>
#include <vector>

#include "core/sequence.h"
#include "torch/arguments.h"

namespace rnnfused {

// The sequences that the kernels run, longest first, and where each of their rows is among the caller's.
//
// What lies so already is not placed: padded input all of whose sequences have every step, and packed rows.
// Otherwise a sequence of the caller's is as many of the kernels' as resets cut it into: each begins with the
// initial state or with zeros, and ends with the final state or with one that nobody asked for. Those without
// a step are left out: their states go straight through.
struct Sequences {
  Index steps, batch;
  std::vector<Index> offsets;  // [T + 1]

  bool placed = false;        // and if so:
  std::vector<Index> places;  // of every row
  std::vector<Index> beyond;  // the caller's rows that are in no sequence
  // Of each sequence in each direction, the caller's sequence whose initial and final state are its own; -1
  // for none.
  std::vector<Index> initial[kMaxDirections], final[kMaxDirections];
  std::vector<Index> empty;  // the caller's sequences without a step
  // Where masks are drawn, of every row: its step times numbered_batch, and its sequence, as the caller
  // counts; on a device, which counts by itself, only where rows were placed.
  std::vector<Index> numbers;
  Index callers_batch, numbered_batch;

  // `on_device`: lengths and resets are the kernels' business, and are not read here. Throws RuntimeError for
  // batch_sizes and lengths that make no sequences.
  Sequences(const Arguments& arguments, const Form& form, bool on_device);

 private:
  void read_batch_sizes(const Arguments& arguments, const Form& form, bool on_device);
  void place(const Arguments& arguments, const Form& form);
  void pad(Index steps);
};

// A tensor as kernels read it: in memory as it looks, without strides and without torch's lazy negation.
// Throws RuntimeError for one without memory.
at::Tensor dense(const at::Tensor& t, const char* name);
// The same in the type that it is computed in.
at::Tensor dense_computed(const at::Tensor& t, const char* name);

// So many units, filled up to whole vectors of what the CPU computes in for scalars of the type.
Index whole_vectors(at::ScalarType type, Index units);

// int64, on the device.
at::Tensor tensor_of(const std::vector<Index>& values, const c10::Device& device);

// A tensor of numbers that say where something is, on the host and contiguous; a copy from a device waits for
// it. Throws RuntimeError for one without memory.
at::Tensor on_host(const at::Tensor& t, const char* name);

struct Inputs {
  const LayerOptions& options;  // of all layers
  CellId cell;
  CellInfo info;
  bool on_gpu;  // which back end runs the call
  int directions;
  bool cells;  // whether this layer's c of every step is asked for
  // x: [T, B, I] or rows; h0 and c0 may be undefined: zeros. The CPU's kernels read x and the matrices among
  // the weights as they are stored, states and biases in the type that is computed in.
  at::Tensor x, h0, c0;
  std::vector<at::Tensor> weights;  // [directions * kSlots], undefined where absent
  int64_t seed = 0;                 // of what is drawn
  std::vector<at::Tensor> scales;   // of matrices of 8 bits [directions * kScaleSlots], or none
  std::shared_ptr<const Sequences> sequences;
  SequenceShape shape;
  Index rows;              // the caller's
  Index unit_scalars = 0;  // of a layer with options: a gate's rows in its matrices, whole vectors of them
  // On a GPU, where rows are masked in place: [B] int64 and [T, B], or undefined.
  at::Tensor lengths, resets;
  // And where rows were placed, what their masks are drawn by [rows] int64.
  at::Tensor numbers;

  // The layer `index` of the arguments, which were checked, on the input x: laid out by steps, or where
  // sequences are placed as the caller gave it. `computed`: everything in the type that is computed in.
  Inputs(const Arguments& arguments, const Form& form, std::shared_ptr<const Sequences> sequences,
         int64_t index, const at::Tensor& x, bool computed = false);

  const at::Tensor& weight(int direction, int slot) const {
    return weights[size_t(direction * kSlots + slot)];
  }
  // A result of the type of x, uninitialised; and on the CPU one of the type that is computed in.
  at::Tensor empty(at::IntArrayRef sizes) const;
  at::Tensor empty_computed(at::IntArrayRef sizes) const;
  // The gradient of weights[weight], as kernels write it.
  at::Tensor empty_gradient(size_t weight) const;
  // Of something with so many units a direction, for every row of the input.
  at::DimVector output_sizes(Index units) const;
  at::DimVector state_sizes(int state) const;

 private:
  at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type) const;
};

// A gradient of weights[weight], which is as the kernels read it, as the caller has the weight.
at::Tensor as_given(const Inputs& in, size_t weight, const at::Tensor& gradient);

}  // namespace rnnfused
