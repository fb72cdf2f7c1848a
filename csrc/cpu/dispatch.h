// The CPU back end as its callers see it: sizes, one forward, one backward, and which machine code runs.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace rnnfused::cpu {

// The table in use: the widest one that was built and that this processor runs, unless RNNFUSED_ISA names
// another. Throws std::runtime_error where RNNFUSED_ISA names one that cannot run here.
const KernelTable& kernels();

// Names of the tables that were built and that this processor can run, widest last.
std::vector<std::string> available_isas();

// How many terms of a product one instruction adds in each lane; one where numbers are widened first.
template <class S>
int terms_at_once();

// What a tape has to hold: that forward() fills and backward() reads.
TapeSize tape_size(CellId cell, bool projected);

// How layers of a shape would be run on at most `threads` threads.
template <class S>
Plan plan(CellId cell, const SequenceShape& shape, int layers, int directions, int threads, bool backward,
          bool staged = false);

template <class S>
void forward(CellId cell, const Stack<S>& stack, int threads);

// Packed weights of one stack, for calls of any shape. Calls whose plans have other members, or few rows in
// place of many, have copies of their own.
class PackedStack {
 public:
  // As forward(), with the same cell and the same weights every time.
  template <class S>
  void forward(CellId cell, Stack<S> stack, int threads);

 private:
  using Kind = std::tuple<int, bool, bool>;  // members, few rows, few inputs where that matters
  std::map<Kind, Scratch> memory_;
};

template <class S>
void backward(CellId cell, const LayerGradient<S>& layer, int threads);

template <class T>
const TangentKernels<T>& tangent_kernels(CellId cell);

// Some steps one after the other, on at most `threads` threads, whose number does not show in the bits.
template <class T>
void tangent_forward(CellId cell, const TangentForward<T>* steps, Index count, int threads);
template <class T>
void tangent_backward(CellId cell, const TangentBackward<T>* steps, Index count, int threads);

}  // namespace rnnfused::cpu
