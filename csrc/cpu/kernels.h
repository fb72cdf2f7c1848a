// What an ISA object offers and what it is handed: the seam between code built once and code built per ISA.
#pragma once

#include <type_traits>
#include <vector>

#include "cells/all.h"
#include "core/sequence.h"
#include "core/tangent.h"
#include "core/tape_size.h"
#include "cpu/plan.h"
#include "cpu/threads.h"

namespace rnnfused {

// A cell's shape (cells/all.h), for those who do not see its type.
struct CellInfo {
  const char* name;
  int gates;
  int states;
  int accumulators;
  int x_first, h_first;
  const int* gate_of;  // [accumulators]
  int taped;
};

template <class S>
struct Layer {
  int directions;
  ForwardArgs<S> forward[kMaxDirections];
};

// Layers over one another, of the same directions: each reads what the one before it wrote.
template <class S>
struct Stack {
  int layers;
  const Layer<S>* layer;
  void* packed = nullptr;  // weights that `pack` has packed for such a stack, if any

  RNNFUSED_HD int directions() const { return layer[0].directions; }
  RNNFUSED_HD const SequenceShape& shape() const { return layer[0].forward[0].shape; }
};

// Streams whose progress others wait for.
template <class S>
int awaited_streams(const Stack<S>& stack, const Plan& plan) {
  return stack.layers > 1 ? stack.layers * stack.directions() * plan.shards : 0;
}

template <class S>
struct LayerGradient {
  int directions;
  BackwardArgs<S> backward[kMaxDirections];
};

// The threads of one call. Every thread runs the same function; `scratch` is shared by all of them.
struct Team {
  Plan plan;
  Barrier* all;
  Barrier* group;      // one for each of the plan's groups
  Progress* progress;  // one for each awaited stream, in the order of for_streams
  void* scratch;
};

template <class Args>
using TeamKernel = void (*)(const Args& args, const Team& team, int thread);

template <class Args>
struct TeamCall {
  TeamKernel<Args> kernel;
  const Args& args;
  Team team;

  static void body(void* self, int thread) {
    const auto& call = *static_cast<TeamCall*>(self);
    call.kernel(call.args, call.team, thread);
  }
};

// Runs the kernel, with so many streams that others wait for, on the plan's threads.
template <class Args>
void run_team(TeamKernel<Args> kernel, const Args& args, const Plan& plan, int streams, void* scratch) {
  Asleep asleep{0};
  Barrier all(plan.threads(), &asleep);
  std::vector<Barrier> group(size_t(plan.groups), Barrier(plan.members, &asleep));
  std::vector<Progress> progress(static_cast<size_t>(streams), Progress(&asleep));
  TeamCall<Args> call{kernel, args, {plan, &all, group.data(), progress.data(), scratch}};
  if (plan.threads() == 1) return parallel(1, &TeamCall<Args>::body, &call);
  const auto start = Scarcity::Clock::now();
  parallel(plan.threads(), &TeamCall<Args>::body, &call);
  Scarcity::report(plan.step_us, Scarcity::Clock::now() - start, std::chrono::nanoseconds(asleep.load()));
}

template <class S>
struct CellKernels {
  TapeSize (*tape_size)(bool projected);
  Index (*packed_bytes)(const Stack<S>& stack, const Plan& plan);
  TeamKernel<Stack<S>> pack;
  Index (*forward_scratch)(const Stack<S>& stack, const Plan& plan);
  TeamKernel<Stack<S>> forward;
  // Null for weights that have no gradients.
  Index (*backward_scratch)(const LayerGradient<S>& layer, const Plan& plan);
  TeamKernel<LayerGradient<S>> backward;
};

// A thread's share of one step; no thread waits for another.
template <class Args>
using StepKernel = void (*)(const Args& step, int threads, int thread);

template <class T>
struct TangentKernels {
  StepKernel<TangentForward<T>> forward;
  StepKernel<TangentBackward<T>> backward;
  // Scalars of packed recurrent weights; none where the product is better left to others.
  Index (*packed_forward)(Index hidden);
  Index (*packed_backward)(Index hidden, bool weights_have_tangents);
  void (*pack_forward)(const RecurrentWeights<T>& w, T* out);
  void (*pack_backward)(const RecurrentWeights<T>& w, T* out);
};

// What is compiled for one ISA and one type that numbers are stored in.
template <class S>
struct TypeKernels {
  int lanes;
  int bytes;  // of a number as it is multiplied
  int terms;  // of a product that one instruction adds in each lane
  CellInfo info[int(CellId::count)];
  CellKernels<S> cells[int(CellId::count)];
  CellKernels<S> staged;  // layers with options (cpu/varied.h); null for types that have none
  TangentKernels<S>
      tangents[int(CellId::count)];  // null for types whose tangents are computed wide, or not at all
};

// What one ISA runs. A type that it has nothing better for, it takes from an older one.
struct KernelTable {
  const char* isa;
  const TypeKernels<float>* f32;
  const TypeKernels<double>* f64;
  const TypeKernels<BFloat16>* bf16;
  const TypeKernels<Half>* f16;
  const TypeKernels<Int8>* i8;

  template <class S>
  const TypeKernels<S>& of() const {
    if constexpr (std::is_same_v<S, float>) return *f32;
    if constexpr (std::is_same_v<S, double>) return *f64;
    if constexpr (std::is_same_v<S, BFloat16>) return *bf16;
    if constexpr (std::is_same_v<S, Half>) return *f16;
    if constexpr (std::is_same_v<S, Int8>) return *i8;
  }
  const CellInfo& info(CellId cell) const { return f32->info[int(cell)]; }
};

}  // namespace rnnfused
