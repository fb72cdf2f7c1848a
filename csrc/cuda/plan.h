// How the CUDA back end runs a layer: a pure function of sizes, so that it can be tested and shown without a
// device.
#pragma once

#include "cuda/layer.h"

namespace rnnfused::cuda {

// stepwise: a product and a kernel per step; runs everywhere, with every size and type. resident: all steps
// in one launch, the recurrent weights in registers; where they fit.
enum class Driver : int { stepwise, resident };

const char* name_of(Driver driver);

// How the blocks that share a sequence's units tell each other of h: not at all, since there is but one
// block; or through the shared memory of a cluster of them (sm_90).
enum class Exchange : int { block, cluster };

// What is made of float32 for matrix instructions, which have no products of it: it is rounded to TF32, or
// split into two TF32 numbers, whose products together err no more than float32's. Other types are as they
// are.
enum class Products : int { rounded, split };

// Rows of the weights, and columns of the batch, that a matrix instruction takes.
constexpr int kTileRows = 16, kEight = 8;

// What there is a resident kernel of.
struct ResidentKernel {
  Exchange exchange;
  int depth;      // hidden units that it holds at most
  int row_tiles;  // of a warp
  int eights;     // of the batch, that a block or a cluster works on
  int warps;      // of a block
  // First operands of instructions that a warp holds in registers, forward and backward; the others lie in
  // shared memory.
  int held_forward, held_backward;

  // `unit_rows`: how many rows of the weights a unit has in a tile.
  constexpr int block_units(int unit_rows) const { return warps * row_tiles * kTileRows / unit_rows; }
  // Operands that a warp holds, of so many numbers in depth each.
  constexpr int operands(Type type) const { return row_tiles * depth / (type == Type::f32 ? 8 : 16); }
};

struct ResidentKernels {
  int count, rounded;  // how many there are, and of them, before the others, with rounded products
  ResidentKernel all[7];

  constexpr Products products(int kernel) const {
    return kernel < rounded ? Products::rounded : Products::split;
  }
};

// Smallest first: an operand takes 4 registers of a thread (8 if split), of which 255 are there with 8 warps
// and 168 with 12. A unit's rows in a tile are one for cells of one gate, four for the others, so that a
// thread gets all gates of a unit.
constexpr ResidentKernels resident_kernels(int unit_rows, Type type) {
  constexpr Exchange block = Exchange::block, cluster = Exchange::cluster;
  if (type == Type::f64 || unit_rows == 0) return {0, 0, {}};
  if (type == Type::f32) {
    return unit_rows == 1 ? ResidentKernels{5,
                                            3,
                                            {{block, 128, 1, 1, 8, 32, 32},
                                             {cluster, 256, 1, 1, 8, 32, 32},
                                             {cluster, 512, 1, 1, 8, 30, 30},
                                             {block, 128, 1, 1, 8, 16, 16},
                                             {cluster, 256, 1, 1, 8, 14, 14}}}
                          : ResidentKernels{7,
                                            4,
                                            {{block, 64, 2, 1, 8, 32, 32},
                                             {cluster, 256, 1, 1, 8, 32, 32},
                                             {cluster, 256, 1, 2, 8, 31, 32},
                                             {cluster, 512, 1, 1, 8, 30, 30},
                                             {block, 64, 2, 1, 8, 16, 16},
                                             {cluster, 128, 1, 1, 8, 16, 16},
                                             {cluster, 256, 1, 1, 8, 14, 14}}};
  }
  return unit_rows == 1 ? ResidentKernels{4,
                                          4,
                                          {{block, 128, 1, 1, 8, 32, 32},
                                           {block, 256, 2, 1, 8, 32, 32},
                                           {cluster, 512, 1, 1, 8, 32, 32},
                                           {cluster, 1024, 1, 1, 8, 30, 30}}}
                        : ResidentKernels{7,
                                          7,
                                          {{block, 64, 2, 1, 8, 32, 32},
                                           {block, 128, 4, 1, 8, 26, 32},
                                           {cluster, 256, 1, 1, 8, 32, 32},
                                           {cluster, 256, 1, 2, 8, 32, 32},
                                           {cluster, 512, 1, 1, 8, 32, 32},
                                           {cluster, 512, 1, 2, 8, 32, 32},
                                           {cluster, 768, 1, 1, 12, 20, 21}}};
}

// A launch of one.
struct Resident {
  int kernel;       // of resident_kernels()
  int cluster = 1;  // blocks
  Index slices;     // of the batch, each a cluster's
};

// What becomes of the gates: kept for every row, gone once their step is done, or rebuilt in backward.
enum class Gates { taped, passing, rebuilt };

struct PlanInput {
  Type type;
  SequenceShape shape;
  int directions;
  int accumulators;  // of the cell
  Gates gates;
  Type gates_type;
  Index chunk_bytes;  // of gates that are held at once where they are not kept
  bool aligned;       // whether every pointer is a multiple of 16 bytes
  // What resident kernels ask: a unit's rows in a tile (0: the cell has none of these kernels), the device's
  // architecture, whether float32 may be multiplied as TF32, and how many clusters of a launch the device can
  // hold.
  int unit_rows;
  int arch;
  bool allows_resident, allows_tf32;
  int (*active_clusters)(const Resident& launch);
};

// Neighbouring units that a thread loads and stores at once, and works on: 16 bytes of the compute type. More
// would spill registers in the wider cells.
constexpr int wide_units(Type type) { return int(16 / bytes_of(compute_type(type))); }

struct Plan {
  Driver driver;
  int units;          // of a thread: wide_units() or 1
  Index chunk_rows;   // at most so many rows are projected at once (but one step at least)
  Resident resident;  // of that driver
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
