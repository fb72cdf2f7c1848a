// How the CUDA back end runs a layer: a pure function of sizes, so that it can be tested and shown without a
// device.
#pragma once

#include "cuda/layer.h"

namespace rnnfused::cuda {

// stepwise: a product and a kernel per step; runs everywhere, with every size and type.
enum class Driver : int { stepwise };

const char* name_of(Driver driver);

// What becomes of the gates: kept for every row, gone once their step is done, or rebuilt in backward.
enum class Gates { taped, passing, rebuilt };

struct PlanInput {
  Type type;
  SequenceShape shape;
  int directions;
  int accumulators;  // of the cell
  Gates gates;
  Index chunk_bytes;  // of gates that are held at once where they are not kept
  bool aligned;       // whether every pointer is a multiple of 16 bytes
};

// Neighbouring units that a thread loads and stores at once, and works on: 16 bytes of the compute type. More
// would spill registers in the wider cells.
constexpr int wide_units(Type type) { return int(16 / bytes_of(compute_type(type))); }

struct Plan {
  Driver driver;
  int units;         // of a thread: wide_units() or 1
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
