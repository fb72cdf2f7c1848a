// What a caller hands to a driver: named pointers and strides, nothing that knows of torch, threads or
// instruction sets.
#pragma once

#include <cstdint>

#include "core/platform.h"
#include "core/scalars.h"

namespace rnnfused {

using Index = int64_t;

// Rows are the (step, batch) pairs in step order, as in torch's PackedSequence: step t holds rows
// [offsets[t], offsets[t + 1]), row b of the batch being the b-th of them. Padded input is the case in which
// every step holds the whole batch. Batch sizes never grow with t. Where the caller's memory holds the rows
// in another order, Rows says where each of them is.
struct SequenceShape {
  Index steps;           // T
  Index batch;           // B
  Index input;           // I
  Index hidden;          // H
  Index output;          // P: H, or the size of the projection
  const Index* offsets;  // [T + 1]
  bool reverse;          // run from each row's last step to its first

  RNNFUSED_HD Index rows() const { return offsets[steps]; }
  RNNFUSED_HD Index active(Index t) const { return offsets[t + 1] - offsets[t]; }
  RNNFUSED_HD bool projected() const { return output != hidden; }
};

// Weights of one layer in one direction, in torch's layout; every matrix is contiguous.
template <class S>
struct Weights {
  const S* input;                // W_ih [G * H, I]
  const S* recurrent;            // W_hh [G * H, P]
  const Compute<S>* input_bias;  // b_ih [G * H] or null
  const Compute<S>* bias;        // b_hh [G * H] or null
  const S* projection;           // W_hr [P, H] or null
  // Of the rows of each matrix, where they have scales.
  const float *input_scales = nullptr, *recurrent_scales = nullptr, *projection_scales = nullptr;
};

// A matrix whose rows are contiguous but need not touch, nor lie in order.
template <class T>
struct Rows {
  T* data;
  Index stride;
  const Index* places = nullptr;  // of every row, counted in strides; negative where it is not there

  RNNFUSED_HD T* operator[](Index row) const { return data + (places ? places[row] : row) * stride; }
  // Null for a row that is not there.
  RNNFUSED_HD T* find(Index row) const {
    return data && !(places && places[row] < 0) ? (*this)[row] : nullptr;
  }
};

constexpr int kMaxStates = 2;
constexpr int kMaxDirections = 2;

template <class T>
struct Attention;
template <class T>
struct AttentionGradient;
template <class T>
struct Variation;
template <class T>
struct VariationParameters;

// Sequences, the matrices they are multiplied with and the tape are stored in S; states, sums over the
// sequence and their gradients are what they are computed in.
template <class S>
struct ForwardArgs {
  using T = Compute<S>;
  SequenceShape shape;
  Weights<S> weights;
  Rows<const Stored<S>> x;            // [rows, I]
  Rows<const T> initial[kMaxStates];  // h [B, P], c [B, H]; zeros where not there
  Rows<Stored<S>> y;                  // [rows, P]
  Rows<T> cells;                      // c of every row [rows, H]; null data means not wanted
  Rows<T> final[kMaxStates];          // h [B, P], c [B, H]; not wanted where not there
  Stored<S>* tape;                    // for backward, as large as TapeSize says; null for inference
  bool recompute;                     // whether the tape goes without most gates, and backward rebuilds them
  const Attention<T>* attention = nullptr;  // writes the last columns of x, step by step
  // Makes states of the sums, which shape then calls hidden units: those of all gates.
  const Variation<T>* variation = nullptr;
};

// Rows of a sequence at most of which the gradient of a matrix is one sum. Longer sequences are cut.
constexpr Index kRowsSummedAtOnce = 256;

// Where the gradient of a matrix goes: as it is summed, or if the rows are so few, as the matrix is stored.
template <class S>
struct MatrixGradient {
  Compute<S>* sums = nullptr;
  S* rounded = nullptr;

  explicit operator bool() const { return sums || rounded; }
  // Calls body(numbers) if it is wanted.
  template <class Body>
  RNNFUSED_HD void visit(Body body) const {
    if constexpr (kNarrow<S>) {
      if (rounded) return body(rounded);
    }
    if (sums) body(sums);
  }
};

template <class S>
struct BackwardArgs {
  using T = Compute<S>;
  SequenceShape shape;
  Weights<S> weights;
  Rows<const S> x;
  Rows<const T> initial[kMaxStates];
  Rows<const S> y;
  const S* tape;
  bool recompute;                    // as in forward
  Rows<const S> dy;                  // [rows, P]; null data means zeros
  Rows<const T> dcells;              // gradient of c [rows, H]; null data means zeros
  Rows<const T> dfinal[kMaxStates];  // zeros where not there
  Rows<S> dx;                        // [rows, I]; this and all below: null data means not wanted
  bool accumulate_dx;                // add to dx: the other direction has written it
  Rows<T> dinitial[kMaxStates];      // [B, P], [B, H]
  MatrixGradient<S> dinput;          // dW_ih [G * H, I]
  MatrixGradient<S> drecurrent;      // dW_hh [G * H, P]
  T* dinput_bias;                    // db_ih [G * H]
  T* dbias;                          // db_hh [G * H]
  MatrixGradient<S> dprojection;     // dW_hr [P, H]
  // Gives the gradients of the last columns of x, which dx then goes without.
  const AttentionGradient<T>* attention = nullptr;
  const Variation<T>* variation = nullptr;  // as in forward
  const VariationParameters<T>* dvariation = nullptr;
};

}  // namespace rnnfused
