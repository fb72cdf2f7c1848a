// Every check: one translation unit, since nvcc takes longer to read its headers than to compile the kernels.
#pragma once

#include "block.cuh"
#include "checks.h"
#include "cluster.cuh"
#include "copies.cuh"
#include "grid.cuh"
#include "matrices.cuh"
#include "numbers.cuh"

namespace rnnfused {
namespace cuda {

inline WrapperChecks wrapper_checks() {
  WrapperChecks all;
  for (const auto& checks :
       {number_checks(), block_checks(), copy_checks(), matrix_checks(), cluster_checks(), grid_checks()})
    all.insert(all.end(), checks.begin(), checks.end());
  return all;
}

}  // namespace cuda
}  // namespace rnnfused
