#include "emulation/matrix.h"

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

constexpr std::ptrdiff_t kRowBytes = 16;

struct LoadOperands {
  uint32_t* fragments;
  int count;
  Block* block;
  std::ptrdiff_t offset;
};

void require_whole_warp(const std::vector<Thread*>& lanes) {
  if (lanes.size() != 32)
    throw Fault(FaultKind::barrier_divergence, lanes[0]->str() + " is in a matrix instruction at " +
                                                   lanes[0]->site.str() + " in a warp of " +
                                                   std::to_string(lanes.size()) + " lanes");
}

void count_bank_conflicts(const std::vector<Thread*>& lanes, int matrix) {
  Statistics& statistics = lanes[0]->block->cluster->grid->statistics();
  ++statistics.ldmatrix_rows;
  std::ptrdiff_t rows[8];
  for (int i = 0; i < 8; ++i) {
    rows[i] = static_cast<LoadOperands*>(lanes[size_t(8 * matrix + i)]->operands)->offset;
    // 32 banks of 4 bytes: two different rows collide where they are a multiple of 128 bytes apart.
    for (int j = 0; j < i; ++j) {
      if (rows[i] == rows[j] || (rows[i] - rows[j]) % 128 != 0) continue;
      ++statistics.ldmatrix_bank_conflicts;
      break;
    }
  }
}

void exchange_load(const std::vector<Thread*>& lanes) {
  require_whole_warp(lanes);
  const int count = static_cast<LoadOperands*>(lanes[0]->operands)->count;
  for (int matrix = 0; matrix < count; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) {
      Thread& lane = *lanes[size_t(8 * matrix + row)];
      const auto& operands = *static_cast<LoadOperands*>(lane.operands);
      SharedMemory& memory =
          checked_shared(lane, operands.block, operands.offset, kRowBytes, lane.site, "loads (ldmatrix)");
      memory.shadow.read(lane, size_t(operands.offset), kRowBytes, lane.access(lane.site));
      std::memcpy(elements[row], memory.bytes.get() + operands.offset, kRowBytes);
    }
    for (unsigned i = 0; i < 32; ++i) {
      const auto& operands = *static_cast<LoadOperands*>(lanes[i]->operands);
      const unsigned line = i / 4, first = i % 4 * 2;
      operands.fragments[matrix] = uint32_t(elements[line][first]) | uint32_t(elements[line][first + 1])
                                                                         << 16;
    }
    count_bank_conflicts(lanes, matrix);
  }
}

struct MultiplyOperands {
  float* d;
  const uint32_t *a, *b;
  Operand type;
};

float element(uint32_t word, unsigned i, Operand type) {
  const auto half = uint16_t(word >> 16 * (i % 2));
  switch (type) {
    case Operand::half:
      return half_to_float(half);
    case Operand::bfloat16:
      return bfloat16_to_float(half);
    case Operand::tf32:
      break;
  }
  return float_of(word & ~0x1fffu);  // the multiplier does not look at the rest
}

void exchange_multiply(const std::vector<Thread*>& lanes) {
  require_whole_warp(lanes);
  const Operand type = static_cast<MultiplyOperands*>(lanes[0]->operands)->type;
  const bool words = type == Operand::tf32;
  const unsigned depth = words ? 8 : 16;
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& operands = *static_cast<MultiplyOperands*>(lanes[lane]->operands);
    const unsigned group = lane / 4, member = lane % 4;
    // One 8x8 (words: 8x4) quarter of a per register, and one half of b.
    for (unsigned i = 0; i < (words ? 4u : 8u); ++i) {
      const unsigned reg = words ? i : i / 2;
      const unsigned row = group + 8 * (reg % 2);
      const unsigned column = words ? member + 4 * (reg / 2) : 2 * member + i % 2 + 8 * (reg / 2);
      a[row][column] = element(operands.a[reg], i, type);
    }
    for (unsigned i = 0; i < (words ? 2u : 4u); ++i) {
      const unsigned reg = words ? i : i / 2;
      const unsigned row = words ? member + 4 * reg : 2 * member + i % 2 + 8 * reg;
      b[row][group] = element(operands.b[reg], i, type);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    float* d = static_cast<MultiplyOperands*>(lanes[lane]->operands)->d;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      // The hardware keeps more bits than float within one instruction; how many is not documented.
      double sum = double(d[i]);
      for (unsigned k = 0; k < depth; ++k) sum += double(a[row][k]) * double(b[k][column]);
      d[i] = float(sum);
    }
  }
}

}  // namespace

void load_matrices(uint32_t* fragments, int count, Block* block, std::ptrdiff_t offset, Site site) {
  Thread& thread = running();
  LoadOperands operands = {fragments, count, block, offset};
  thread.operands = &operands;
  thread.block->warp_of(thread).meet(thread, "ldmatrix", site, false, exchange_load);
}

void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, Operand type, Site site) {
  Thread& thread = running();
  MultiplyOperands operands = {d, a, b, type};
  thread.operands = &operands;
  thread.block->warp_of(thread).meet(thread, "mma_sync", site, false, exchange_multiply);
}

}  // namespace emulation
}  // namespace rnnfused
