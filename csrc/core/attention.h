// What a layer attends to while it runs (Bahdanau, Cho and Bengio 2015): before every step its state is a
// query, scored against the keys of a source; the softmax of the scores weighs the source's values, and their
// sum, the context, enters the step as the last columns of its input.
#pragma once

#include "core/sequence.h"

namespace rnnfused {

// score(h, k) = v . tanh(W_q h + k). Every matrix is contiguous; rows are the layer's, all of padded input.
template <class T>
struct Attention {
  Index source, size, context;  // S, A, V
  const T* keys;                // [B, S, A]
  const T* values;              // [B, S, V]
  const bool* mask;             // which steps of the source there are [B, S]; null means all
  const T* query;               // W_q [A, H]
  const T* score;               // v [A]
  T* x;                         // the layer's input [rows, I]; the contexts become its last V columns
  T* queries;                   // W_q h of every row [rows, A]
  T* weights;                   // [rows, S]
};

template <class T>
struct AttentionGradient {
  Attention<T> of;
  const T* dx;        // from outside, of x as the layer leaves it [rows, I]; null means zeros
  const T* dweights;  // [rows, S]; null means zeros
  T* dkeys;           // [B, S, A], added to
  T* dscore;          // of every sequence [B, A], added to
  T* dqueries;        // [rows, A]
  T* dcontexts;       // [rows, V]
};

}  // namespace rnnfused
