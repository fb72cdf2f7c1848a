// What lies between the products of one step of a layer, forward or backward, with tangents or without: what
// the kernels of every machine are handed.
#pragma once

#include "core/sequence.h"

namespace rnnfused {

// Rows of values and rows of their tangents, laid out alike. What is read and has no data is zero; what is
// written and has none is not wanted.
template <class T>
struct DualRows {
  T* value = nullptr;
  T* tangent = nullptr;
  Index stride = 0;
};

// States [rows, H] before a step: of the first `count` rows those after the step before, of the others, which
// start here, the initial ones. Those of h are absent where it is projected.
template <class T>
struct PreviousStates {
  Index count;
  DualRows<const T> before[kMaxStates], initial[kMaxStates];
};

// What forward taped of a step's rows on the CPU: its gates [rows, blocks, accumulators, lanes] and the
// states beside h [rows, blocks, lanes].
template <class T>
struct Taped {
  const T* gates = nullptr;
  const T* cell = nullptr;
  Index units = 0;  // H in whole vectors
};

template <class T>
struct TangentForward {
  Index rows, hidden;
  bool tangents;
  // [rows, accumulators * H]: the accumulators before, what the cell tapes after. The values are neither read
  // nor written where they are known: by what forward taped, or of a cell that tapes nothing by `next`, which
  // holds all that its gradients are made of.
  DualRows<T> gates;
  PreviousStates<T> previous;
  DualRows<T> next[kMaxStates];  // [rows, H]; the values of h are only read where the gates' are known
  Taped<T> taped = {};           // where there is a tape
  // On the CPU, packed weights with which the kernel itself adds the product of the previous h's tangents to
  // those of the accumulators; else it is there already.
  const T* recurrent = nullptr;
};

template <class T>
struct TangentBackward {
  Index rows, hidden;
  bool tangents;
  DualRows<T> gates;  // [rows, accumulators * H]: what the cell taped before, its gradients after
  PreviousStates<T> previous;
  DualRows<const T> next[kMaxStates];  // [rows, H]
  // [rows, H]: a part of the gradients of the next states, of which `dstates` lack it.
  DualRows<const T> outer[kMaxStates];
  // [rows, H]: gradients of the next states before (what `outer` lacks), of the previous states after,
  // without the recurrent product.
  DualRows<T> dstates[kMaxStates];
  // On the CPU, packed weights with which the kernel itself adds the product of the gates' gradients `after`,
  // of the `after_rows` rows of the step after this one, to those of h; else it is there already.
  const T* recurrent = nullptr;
  bool weights_have_tangents = false;  // whether those of the weights are packed, too
  DualRows<const T> after = {};
  Index after_rows = 0;
};

// W_hh [G * H, H] in torch's order.
template <class T>
struct RecurrentWeights {
  Index hidden;
  const T* value;
  const T* tangent;  // or null
};

}  // namespace rnnfused
