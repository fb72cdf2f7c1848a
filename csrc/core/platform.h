// The one place that knows which compiler and which machine code the shared maths is built for.
#pragma once

#if defined(__CUDACC__)
#define RNNFUSED_HD __host__ __device__ __forceinline__
#else
#define RNNFUSED_HD inline __attribute__((always_inline))
#endif

// Names the machine code being built. Everything that is compiled once per ISA lives in
// rnnfused::RNNFUSED_ISA, so that the linker can never fold the AVX-512 copy of an inline function into the
// path for an older CPU.
#ifndef RNNFUSED_ISA
#define RNNFUSED_ISA scalar
#endif
