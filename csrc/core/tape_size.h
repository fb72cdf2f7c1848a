// How much forward keeps for backward. The rule stands here alone, and depends on nothing but numbers that
// both directions and all machines share: who allocates a tape need not know who lays it out, and where a
// graph is traced the number of rows may be a symbol.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/sequence.h"

namespace rnnfused {

// Sequences of no more rows are run without packed weights where units are many (cpu/plan.h): in another
// order of terms, which no large product repeats.
constexpr Index kUnpackedRows = 8;

// Where backward recomputes the gates, those of the last steps are kept all the same, since it begins with
// them: at most this many rows and a quarter of all; but never fewer than could have been run unpacked.
constexpr Index kKeptRows = 512;

template <class Int>
Int most_kept_rows(const Int& rows) {
  const Int quarter = rows / 4;
  if constexpr (std::is_same_v<Int, Index>) {
    return std::max(std::min(quarter, kKeptRows), std::min(rows, kUnpackedRows));
  } else {
    return quarter.min(kKeptRows).max(rows.min(kUnpackedRows));
  }
}

// What a hidden unit keeps, in scalars of the type that is computed in.
struct TapeSize {
  int each;        // for every row: c, and with a projection the output before it
  int gates;       // for every row whose gates are kept
  int of_row = 0;  // scalars of a row as a whole

  // Of one direction. Units are padded to whole cache lines, which no machine's vectors exceed.
  template <class Int>
  Int scalars(const Int& rows, Index hidden, bool recompute, Index scalar_bytes) const {
    const Index line = 64 / scalar_bytes;
    return of_units(rows, (hidden + line - 1) / line * line, recompute);
  }
  // Of so many units with what pads them.
  template <class Int>
  Int of_units(const Int& rows, Index units, bool recompute) const {
    return (rows * each + (recompute ? most_kept_rows(rows) : rows) * gates) * units + rows * of_row;
  }
};

}  // namespace rnnfused
