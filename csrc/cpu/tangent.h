// A step of a layer on plain numbers or on dual ones: its elementwise part, and of a small layer its
// recurrent product too, since a product of a few rows by someone else takes half its time to begin.
#pragma once

#include "core/pieces.h"
#include "core/stream.h"
#include "cpu/gates.h"
#include "cpu/kernels.h"

namespace rnnfused::RNNFUSED_ISA {

template <class T>
RNNFUSED_HD Piece<T> piece_at(Index row, Index block, Index hidden) {
  return {row, block * kLanes<T>, lanes_in<T>(block, hidden)};
}

// Calls body(piece) for a thread's share of a step.
template <class T, class Body>
RNNFUSED_HD void for_pieces(Index rows, Index hidden, int threads, int thread, Body body) {
  const Index blocks = blocks_of<T>(hidden);
  const Range mine = share(rows * blocks, threads, thread);
  if (mine.size() == 0) return;
  Index row = mine.first / blocks, block = mine.first % blocks;
  for (Index i = mine.first; i < mine.last; ++i) {
    body(piece_at<T>(row, block, hidden));
    if (++block == blocks) ++row, block = 0;
  }
}

// Calls body(first block, how many) for a thread's share of the groups of `width` blocks of hidden units.
template <class T, class Body>
RNNFUSED_HD void for_groups(Index hidden, Index width, int threads, int thread, Body body) {
  const Index blocks = blocks_of<T>(hidden);
  const Range mine = share((blocks + width - 1) / width, threads, thread);
  for (Index group = mine.first; group < mine.last; ++group) {
    const Index first = group * width, rest = blocks - first;
    body(first, rest < width ? rest : width);
  }
}

// ---- The recurrent product, where its panels stay in the second-level cache whole

constexpr Index kColumnBlocks = 2;  // of a panel of the backward product

// Of the gradients of a row's gates, of which the tangents lie `stride` behind the values: the tangents of h
// get the weights' tangents times the values, too.
template <class Cell>
constexpr Runs gradient_runs(Index hidden, bool both, Index stride = 0) {
  return {both ? 2 : 1, Cell::gates * hidden, stride};
}

template <class Cell, class T>
Index packed_forward(Index hidden) {
  const Runs k{1, hidden, 0};
  const bool whole = partial_scalars<T>(1, k, int(kNarrowGroup<Cell> * Cell::gates)) == 0;
  return whole ? Cell::gates * hidden * padded<T>(hidden) : 0;
}

template <class Cell, class T>
Index packed_backward(Index hidden, bool weights_have_tangents) {
  const Runs k = gradient_runs<Cell>(hidden, weights_have_tangents);
  return partial_scalars<T>(1, k, kColumnBlocks) == 0 ? k.size() * padded<T>(hidden) : 0;
}

template <class Cell, class T>
void pack_forward(const RecurrentWeights<T>& w, T* out) {
  for_groups<T>(w.hidden, kNarrowGroup<Cell>, 1, 0, [&](Index first, Index count) {
    T* panel = out + first * kLanes<T> * Cell::gates * w.hidden;
    pack_gates(w.value, w.hidden, w.hidden, w.hidden, Cell::gates, Cell::gate_of + Cell::h_first, first,
               count, panel);
  });
}

// Of every panel the tangents, if there are any, then the values.
template <class Cell, class T>
void pack_backward(const RecurrentWeights<T>& w, T* out) {
  for_groups<T>(w.hidden, kColumnBlocks, 1, 0, [&](Index first, Index count) {
    for (const T* weights : {w.tangent, w.value}) {
      if (!weights) continue;
      for (int g = 0; g < Cell::gates; ++g) {
        const T* row = weights + Cell::gate_of[Cell::h_first + g] * w.hidden * w.hidden;
        pack_columns(row, w.hidden, w.hidden, w.hidden, first, count, out);
        out += w.hidden * count * kLanes<T>;
      }
    }
  });
}

template <class Cell, class T>
void forward_with_product(const TangentForward<T>& step, int threads, int thread) {
  using V = Dual<Native<T>>;
  constexpr Index L = kLanes<T>, G = Cell::gates;
  const Index H = step.hidden;
  const auto &before = step.previous.before[0], &initial = step.previous.initial[0];
  const Index count = step.previous.count < step.rows ? step.previous.count : step.rows;
  const Index rows = initial.tangent ? step.rows : before.tangent ? count : 0;
  const auto piece_of = [&](Index row, Index block, const T* product) {
    const Piece<T> piece = piece_at<T>(row, block, H);
    step.taped.gates ? forward_known<Cell>(step, piece, product)
                     : forward_piece<Cell, V>(step, piece, product);
  };
  for_groups<T>(H, kNarrowGroup<Cell>, threads, thread, [&](Index first, Index blocks) {
    product<T>(
        rows, Runs{1, H, 0}, int(blocks * G), step.recurrent + first * L * G * H, static_cast<T*>(nullptr),
        [&](Index row) {
          const auto& from = row < count ? before : initial;
          return from.tangent + row * from.stride;
        },
        [&](Index row, T* acc) {
          for (Index b = 0; b < blocks; ++b) {
            const Piece<T> piece = piece_at<T>(row, first + b, H);
            for (int g = 0; g < G; ++g) {
              store(acc + (b * G + g) * L, load_or_zero<T>(step.gates.tangent, step.gates.stride,
                                                           of_accumulator(piece, Cell::h_first + g, H)));
            }
          }
        },
        [&](Index row, const T* acc) {
          for (Index b = 0; b < blocks; ++b) piece_of(row, first + b, acc + b * G * L);
        });
    for (Index row = rows; row < step.rows; ++row) {
      for (Index b = 0; b < blocks; ++b) piece_of(row, first + b, nullptr);
    }
  });
}

// sums [rows, H] += a product of the rows that a(row) says with the panel.
template <class T, class RowOf, class SumOf>
RNNFUSED_HD void add_product(Index rows, Runs k, const T* panel, Index hidden, Index first, Index blocks,
                             RowOf a, SumOf sum) {
  constexpr Index L = kLanes<T>;
  product<T>(
      rows, k, int(blocks), panel, static_cast<T*>(nullptr), a,
      [&](Index row, T* acc) {
        for (Index b = 0; b < blocks; ++b)
          store(acc + b * L, load<Native<T>>(sum(row) + (first + b) * L, lanes_in<T>(first + b, hidden)));
      },
      [&](Index row, const T* acc) {
        for (Index b = 0; b < blocks; ++b)
          store(sum(row) + (first + b) * L, load<Native<T>>(acc + b * L), lanes_in<T>(first + b, hidden));
      });
}

template <class Cell, class V, class T>
void backward_with_product(const TangentBackward<T>& step, int threads, int thread) {
  const Index H = step.hidden;
  const DualRows<T>& dh = step.dstates[0];
  const bool both = step.weights_have_tangents;
  const Runs plain = gradient_runs<Cell>(H, false),
             all = gradient_runs<Cell>(H, both, step.after.tangent - step.after.value);
  const auto gates = [&](const T* of, Index row) { return of + row * step.after.stride + Cell::h_first * H; };
  for_groups<T>(H, kColumnBlocks, threads, thread, [&](Index first, Index blocks) {
    const Index columns = blocks * kLanes<T>;
    const T* panel = step.recurrent + first * kLanes<T> * all.size();
    const T* of_values = panel + (both ? plain.size() * columns : 0);
    add_product<T>(
        step.after_rows, plain, of_values, H, first, blocks,
        [&](Index row) { return gates(step.after.value, row); },
        [&](Index row) { return dh.value + row * dh.stride; });
    if (step.tangents) {
      const T* from = both ? step.after.value : step.after.tangent;
      add_product<T>(
          step.after_rows, all, panel, H, first, blocks, [&](Index row) { return gates(from, row); },
          [&](Index row) { return dh.tangent + row * dh.stride; });
    }
    for (Index row = 0; row < step.rows; ++row) {
      for (Index b = 0; b < blocks; ++b) backward_piece<Cell, V>(step, piece_at<T>(row, first + b, H));
    }
  });
}

template <class Cell, class T>
void tangent_forward(const TangentForward<T>& step, int threads, int thread) {
  if (step.recurrent) return forward_with_product<Cell>(step, threads, thread);
  const auto run = [&](auto number) {
    for_pieces<T>(step.rows, step.hidden, threads, thread,
                  [&](const Piece<T>& piece) { forward_piece<Cell, decltype(number)>(step, piece); });
  };
  if (step.taped.gates) {
    return for_pieces<T>(step.rows, step.hidden, threads, thread, [&](const Piece<T>& piece) {
      forward_known<Cell>(step, piece, static_cast<const T*>(nullptr));
    });
  }
  step.tangents ? run(Dual<Native<T>>{}) : run(Native<T>{});
}

template <class Cell, class T>
void tangent_backward(const TangentBackward<T>& step, int threads, int thread) {
  const auto run = [&](auto number) {
    using V = decltype(number);
    if (step.recurrent) return backward_with_product<Cell, V>(step, threads, thread);
    for_pieces<T>(step.rows, step.hidden, threads, thread,
                  [&](const Piece<T>& piece) { backward_piece<Cell, V>(step, piece); });
  };
  step.tangents ? run(Dual<Native<T>>{}) : run(Native<T>{});
}

template <class Cell, class T>
constexpr TangentKernels<T> tangent_kernels_of() {
  return {&tangent_forward<Cell, T>, &tangent_backward<Cell, T>, &packed_forward<Cell, T>,
          &packed_backward<Cell, T>, &pack_forward<Cell, T>,     &pack_backward<Cell, T>};
}

}  // namespace rnnfused::RNNFUSED_ISA
