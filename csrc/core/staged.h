// What the drivers take for a cell where a layer has options (varied.h): a unit for every gate of every
// hidden unit, with a sum of what x feeds and one of what h feeds. Its maths is a stage of its own.
#pragma once

#include <type_traits>

#include "core/sequence.h"

namespace rnnfused::RNNFUSED_ISA {

struct Staged {
  static constexpr int states = 1;
  static constexpr int gates = 1;
  static constexpr int accumulators = 2;
  static constexpr int x_first = 0, h_first = 1;
  static constexpr int gate_of[] = {0, 0};
  static constexpr int taped = 2;  // the sums
};
template <class Cell>
constexpr bool kStaged = std::is_same_v<Cell, Staged>;

// Whether h is projected. A staged layer has more units than outputs, too.
template <class Cell>
RNNFUSED_HD bool projects(const SequenceShape& shape) {
  return !kStaged<Cell> && shape.projected();
}

}  // namespace rnnfused::RNNFUSED_ISA
