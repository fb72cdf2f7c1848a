// Barriers of a block and what a warp does together.
#pragma once

#include "emulation/fault.h"

namespace rnnfused {
namespace emulation {

void meet_block(Site site);

}  // namespace emulation

namespace cuda {

inline void block_sync(emulation::Site site = emulation::Site::here()) { emulation::meet_block(site); }

}  // namespace cuda
}  // namespace rnnfused
