// The CUDA back end as its callers see it: sizes, one forward, one backward. All work is put on the stream;
// nothing waits for it, and nothing is read back.
#pragma once

#include "cells/all.h"
#include "core/tangent.h"
#include "cuda/layer.h"
#include "cuda/matmul.h"
#include "cuda/plan.h"

namespace rnnfused::cuda {

// What a call will take.
struct Work {
  Plan plan;
  Index scratch_bytes;
};

// The drivers of one cell and type. Their work is asked for with a layer that lacks nothing but its scratch.
struct CellDrivers {
  const int* input_gates;  // the gates [G] that the input feeds, in the order of the accumulators
  Index (*tape_bytes)(const Layer& layer);
  Work (*forward_work)(const ForwardLayer& layer);
  void (*forward)(const ForwardLayer& layer, Matmul& matmul, StreamHandle stream);
  Work (*backward_work)(const BackwardLayer& layer);
  void (*backward)(const BackwardLayer& layer, Matmul& matmul, StreamHandle stream);
};

const CellDrivers& drivers(CellId cell, Type type);

// Those of layers with options, whichever cell they are of.
const CellDrivers& varied_drivers(Type type);

// The elementwise part of one step, of float or double.
template <class T>
void tangent_forward(CellId cell, const TangentForward<T>& step, StreamHandle stream);
template <class T>
void tangent_backward(CellId cell, const TangentBackward<T>& step, StreamHandle stream);

// Those of the stepwise driver, which is compiled for each type on its own.
template <Type type>
struct Stepwisely {
  static const CellDrivers& drivers(CellId cell);
  static const CellDrivers& varied_drivers();
};

}  // namespace rnnfused::cuda
