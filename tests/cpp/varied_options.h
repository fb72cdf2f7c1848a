// What a test says of a layer with options; the rest of a Variation follows from it, or from the case.
#pragma once

#include "core/variation.h"

namespace rnnfused::test {

struct VariedOptions {
  const char* name;
  Maths maths;
  int gates, states;
  GateNorm gate_norm = GateNorm::none;
  CellNorm cell_norm = CellNorm::none;
  bool peephole = false, drawn = false;
};

}  // namespace rnnfused::test
