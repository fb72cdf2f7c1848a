// The host's side of csrc/cuda/ptx.cuh: the same names, carried out by the emulator.
#pragma once

#include "emulation/approximations.h"
#include "emulation/async_copy.h"
#include "emulation/atomics.h"
#include "emulation/collectives.h"
#include "emulation/global.h"
#include "emulation/half.h"
#include "emulation/language.h"
#include "emulation/matrix.h"
#include "emulation/mbarrier.h"
#include "emulation/shared.h"
