// The resident kernels as the driver sees them: what one launch is told, and what can be asked of it.
#pragma once

#include "cuda/gates.cuh"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace rnnfused::cuda {

// The sequences, in device memory, and which positions of them a launch runs.
struct Walk {
  Index steps, batch;
  // Of packed sequences: offsets of rows [T + 1] and after them every sequence's length [B]; null where the
  // whole batch is there at every step.
  const int* offsets;
  const Index* lengths;  // of padded ones [B], or null: all steps
  const bool* resets;    // [T, B] or null: none
  Index begin, end;      // positions, in the order in which forward runs
};

// What either way is told of a layer.
template <class T>
struct ResidentLayer {
  Walk walk;
  Index hidden, directions;
  const T* weights;                 // W_hh [D, G * H, H]
  Index gates_stride;               // of a direction
  Index first_row[kMaxDirections];  // of the chunk
  Index cell_stride;
};

template <class Cell, class T>
struct ResidentForward : ResidentLayer<T> {
  using C = Compute<T>;
  Biases<T> biases[kMaxDirections];
  GateOf<Cell, T>* gates;  // [D, rows of the chunk, A, H]: the input's projection, then what is taped
  bool tapes_gates;
  bool continues;  // the walk before this one, whose states are in h_wide (in h where that is null)
  T* h;            // [D, B, H]
  C* h_wide;       // the same before it is rounded, or null where T is the compute type
  C* c;            // [D, B, H]
  T* y;            // [rows, D * H]
  T* cells;        // c of every row, as it is given out [rows, D * H], or null
  C* cell;         // the same as backward reads it [D, rows, H], or null
};

template <class Cell, class T>
struct ResidentBackward : ResidentLayer<T> {
  using C = Compute<T>;
  const GateOf<Cell, T>* gates;  // what the cell taped, or would have [D, rows of the chunk, A, H]
  const C* cell;                 // c of every row [D, rows, H]
  const T* y;                    // [rows, D * H]
  const T* h0;                   // [D, B, H]
  const C* c0;                   // [D, B, H]
  const T* dy;                   // [rows, D * H] or null
  const T* dcells;               // [rows, D * H] or null
  C *dh, *dc;                    // [D, B, H]: of the states after the walk, then of those before it
  T* gradients;                  // of the gates [D, rows, A, H]
  Index gradients_stride;
};

// A unit's rows in a tile.
template <class Cell>
constexpr int kUnitRows = Cell::gates == 1 ? 1 : 4;

// Whether there are such kernels.
template <class Cell, class T>
constexpr bool kHasResident = resident_kernels(kUnitRows<Cell>, TypeOf<T>::value).count > 0;

// The kernels of one way, forward or backward; Arguments are ResidentForward or ResidentBackward.
template <class Cell, class Arguments>
struct ResidentLaunch {
  // How many clusters of it the current device can hold at once.
  static int active(const Resident& launch);
  static void start(const Resident& launch, const Arguments& arguments, Stream stream);
};

}  // namespace rnnfused::cuda
