// What an ISA object offers and what it is handed: the seam between code built once and code built per ISA.
#pragma once

#include "cells/all.h"
#include "core/sequence.h"
#include "cpu/plan.h"
#include "cpu/threads.h"

namespace rnnfused {

constexpr int kMaxDirections = 2;

// Scalars a cell keeps per call, and its shape, for those who do not see its type.
struct CellInfo {
  const char* name;
  int gates;
  int states;
};

template <class T>
struct Layer {
  int directions;
  ForwardArgs<T> forward[kMaxDirections];
};

template <class T>
struct LayerGradient {
  int directions;
  BackwardArgs<T> backward[kMaxDirections];
};

// The threads of one call. Every thread runs the same function; `scratch` is shared by all of them.
struct Team {
  Plan plan;
  Barrier all;
  Barrier group[kMaxThreads];
  void* scratch;

  explicit Team(const Plan& p) : plan(p) {
    all.reset(p.threads());
    for (int g = 0; g < p.groups; ++g) group[g].reset(p.members);
  }
};

template <class T>
struct CellKernels {
  Index (*tape_scalars)(const SequenceShape& shape);
  Index (*forward_scratch)(const Layer<T>& layer, const Plan& plan);
  void (*forward)(const Layer<T>& layer, Team& team, int thread);
  Index (*backward_scratch)(const LayerGradient<T>& layer, const Plan& plan);
  void (*backward)(const LayerGradient<T>& layer, Team& team, int thread);
};

template <class T>
struct TypeKernels {
  int lanes;
  CellKernels<T> cells[int(CellId::count)];
};

struct KernelTable {
  const char* isa;
  CellInfo info[int(CellId::count)];
  TypeKernels<float> f32;
  TypeKernels<double> f64;
};

}  // namespace rnnfused
