// How the CUDA back end runs a layer: a pure function of sizes, so that it can be tested and shown without a
// device.
#pragma once

#include "cuda/layer.h"

namespace rnnfused::cuda {

// stepwise: a product and a kernel per step; runs everywhere, with every size and type.
enum class Driver : int { stepwise };

const char* name_of(Driver driver);

struct PlanInput {
  Type type;
  SequenceShape shape;
  int directions;
  int accumulators;   // of the cell
  bool taped;         // whether the gates of all rows are kept
  Index chunk_bytes;  // of gates that are held at once where they are not
  bool aligned;       // whether every pointer is a multiple of 16 bytes
};

struct Plan {
  Driver driver;
  int units;         // that a thread works on, loaded and stored at once
  Index chunk_rows;  // at most so many rows are projected at once (but one step at least)
};

Plan make_plan(const PlanInput& input);

// Blocks of 128 threads, those of one row of the batch side by side.
struct Geometry {
  unsigned grid_x, grid_y, block_x, block_y;
};

constexpr unsigned kBlockThreads = 128;

// For `rows` rows of `units` units, `per_thread` to a thread. Rows beyond the grid are reached by its stride.
Geometry geometry(Index rows, Index units, int per_thread);

}  // namespace rnnfused::cuda
