// The host's side of csrc/cuda/ptx.cuh: the same names, carried out by the emulator.
#pragma once

#include "emulation/collectives.h"
#include "emulation/half.h"
#include "emulation/language.h"
#include "emulation/shared.h"
