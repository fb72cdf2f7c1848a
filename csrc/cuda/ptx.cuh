// Every hardware instruction that the kernels use, by name: the only place with inline PTX and intrinsics.
// tests/cpp/cuda_on_host/cuda/ptx.cuh implements the same names for a host compiler. Each function says its
// PTX instruction, and from which architecture it has it; where the architecture lacks it, it traps.
#pragma once

#if !defined(__CUDACC__)
#error "for nvcc; on the host, link rnnfused_cuda_emulation before what adds csrc to the include path"
#endif

#include <cooperative_groups.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/scalars.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the kernels need sm_80 or newer"
#endif

#define RNNFUSED_UNROLL _Pragma("unroll")
#define RNNFUSED_NO_UNROLL _Pragma("unroll 1")

// The architecture being compiled for, and 0 in host code, which must take the newest path.
#if defined(__CUDA_ARCH__)
#define RNNFUSED_ARCH __CUDA_ARCH__
#else
#define RNNFUSED_ARCH 0
#endif

namespace rnnfused {
namespace cuda {

// trap
__device__ __forceinline__ void trap() { asm volatile("trap;"); }

// ---- 16-bit floating point

__device__ __forceinline__ float to_float(float value) { return value; }
// cvt.f32.f16
__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
// The upper half of a float: no instruction but a shift.
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(uint32_t(value.bits) << 16);
}

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
// cvt.rn.f16.f32
template <>
__device__ __forceinline__ Half from_float<Half>(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
// cvt.rn.bf16.f32, sm_80
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

// Two neighbours of a 16-bit matrix in one register, the first in the lower half: an operand of mma_sync.
template <class T>
__device__ __forceinline__ uint32_t pack(T low, T high) {
  return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}

// ---- Approximate functions: fast, and not for results that a reference is compared with. Where .ftz stands,
// subnormal numbers are zeros of the same sign, as input and as result.

// At most 2 ulp from the rounded result. ex2.approx.ftz.f32
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// At most 1 ulp from the rounded result. rcp.approx.ftz.f32
__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- Memory

// A pointer into shared memory: on the host a checked one. Read through a typed variable, write `p[i] = x`,
// and say `p + i`, never `&p[i]`.
template <class T>
using Shared = T*;

// A pointer into global memory that several blocks exchange data through.
template <class T>
using Global = T*;

// `offset` bytes into the block's dynamic shared memory.
template <class T>
__device__ __forceinline__ Shared<T> shared_memory(size_t offset) {
  extern __shared__ __align__(128) unsigned char rnnfused_shared_memory[];
  return reinterpret_cast<T*>(rnnfused_shared_memory + offset);
}

// The same bytes as elements of another type.
template <class U, class T>
__device__ __forceinline__ U* shared_cast(T* pointer) {
  return reinterpret_cast<U*>(pointer);
}
template <class U, class T>
__device__ __forceinline__ U* global_cast(T* pointer) {
  return reinterpret_cast<U*>(pointer);
}

namespace ptx_detail {

// The address of this block's shared memory as the instructions take it. cvta.to.shared
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ size_t global_address(const void* pointer) {
  return __cvta_generic_to_global(pointer);
}

template <class To, class From>
__device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
template <class T>
using Value = std::remove_cv_t<T>;

template <class T>
constexpr bool is_word = sizeof(T) == 4 || sizeof(T) == 8;

}  // namespace ptx_detail

// The same pointer, of which the caller knows that it is a multiple of Bytes; the host checks it.
template <int Bytes, class T>
__device__ __forceinline__ T* aligned(T* pointer) {
  return static_cast<T*>(__builtin_assume_aligned(pointer, Bytes));
}

// ---- The block and the warp

// bar.sync 0 (barrier.sync.aligned)
__device__ __forceinline__ void block_sync() { __syncthreads(); }

// All lanes of a warp call these together.
constexpr unsigned kAllLanes = 0xffffffffu;

// bar.warp.sync, sm_70
__device__ __forceinline__ void warp_sync() { __syncwarp(kAllLanes); }
// shfl.sync.bfly.b32, sm_70
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, unsigned mask) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  return __shfl_xor_sync(kAllLanes, value, int(mask));
}
// From `delta` lanes further on; the last ones keep theirs. shfl.sync.down.b32, sm_70
template <class T>
__device__ __forceinline__ T shuffle_down(T value, unsigned delta) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  return __shfl_down_sync(kAllLanes, value, delta);
}

// ---- The cluster

// %cluster_ctarank, sm_90
__device__ __forceinline__ unsigned cluster_rank() {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  trap();
  return 0;
#endif
}

// %cluster_nctarank, sm_90
__device__ __forceinline__ unsigned cluster_size() {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  trap();
  return 1;
#endif
}

// barrier.cluster.arrive.release and barrier.cluster.wait.acquire, sm_90
__device__ __forceinline__ void cluster_sync() {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
#else
  trap();
#endif
}

// A pointer into the shared memory of any block of the cluster: 32 bits, where a plain one would have 64.
template <class T>
struct Remote {
  uint32_t address;
  __device__ __forceinline__ Remote operator+(int i) const {
    return {address + uint32_t(i) * uint32_t(sizeof(T))};
  }
};

// The same bytes as elements of another type.
template <class U, class T>
__device__ __forceinline__ Remote<U> remote_cast(Remote<T> pointer) {
  return {pointer.address};
}

// Where the block of that rank has what `pointer` points to in this block. mapa, sm_90
template <class T>
__device__ __forceinline__ Remote<T> cluster_map(T* pointer, unsigned rank) {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  Remote<T> mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(mapped.address)
      : "r"(ptx_detail::shared_address(pointer)), "r"(rank));
  return mapped;
#else
  trap();
  return {0};
#endif
}

// ---- The grid of a cooperative launch

// bar.sync, atom and fence: cooperative_groups' barrier
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

// ---- Synchronisation in global memory, words of 32 and 64 bits

// `order` is acquire or relaxed.
#define RNNFUSED_LOAD(order)                                                                         \
  template <class T>                                                                                 \
  __device__ __forceinline__ ptx_detail::Value<T> load_##order(T* at) {                              \
    static_assert(ptx_detail::is_word<T>, "a word of 32 or 64 bits");                                \
    const auto address = ptx_detail::global_address(at);                                             \
    if constexpr (sizeof(T) == 4) {                                                                  \
      uint32_t word;                                                                                 \
      asm volatile("ld." #order ".gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory"); \
      return ptx_detail::bit_cast<ptx_detail::Value<T>>(word);                                       \
    } else {                                                                                         \
      uint64_t word;                                                                                 \
      asm volatile("ld." #order ".gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(address) : "memory"); \
      return ptx_detail::bit_cast<ptx_detail::Value<T>>(word);                                       \
    }                                                                                                \
  }
// `order` is release or relaxed.
#define RNNFUSED_STORE(order)                                                                        \
  template <class T>                                                                                 \
  __device__ __forceinline__ void store_##order(T* at, ptx_detail::Value<T> value) {                 \
    static_assert(ptx_detail::is_word<T>, "a word of 32 or 64 bits");                                \
    const auto address = ptx_detail::global_address(at);                                             \
    if constexpr (sizeof(T) == 4) {                                                                  \
      const auto word = ptx_detail::bit_cast<uint32_t>(value);                                       \
      asm volatile("st." #order ".gpu.global.u32 [%0], %1;" : : "l"(address), "r"(word) : "memory"); \
    } else {                                                                                         \
      const auto word = ptx_detail::bit_cast<uint64_t>(value);                                       \
      asm volatile("st." #order ".gpu.global.u64 [%0], %1;" : : "l"(address), "l"(word) : "memory"); \
    }                                                                                                \
  }
// ld.acquire.gpu, ld.relaxed.gpu, st.release.gpu, st.relaxed.gpu, sm_70
RNNFUSED_LOAD(acquire)
RNNFUSED_LOAD(relaxed)
RNNFUSED_STORE(release)
RNNFUSED_STORE(relaxed)
#undef RNNFUSED_LOAD
#undef RNNFUSED_STORE

// Returns what was there before. atom.acq_rel.gpu.add, sm_70
__device__ __forceinline__ uint32_t atomic_add(uint32_t* at, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(ptx_detail::global_address(at)), "r"(value)
               : "memory");
  return before;
}

// atom.relaxed.gpu.add, sm_70
__device__ __forceinline__ uint32_t atomic_add_relaxed(uint32_t* at, uint32_t value) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(ptx_detail::global_address(at)), "r"(value)
               : "memory");
  return before;
}

// Orders relaxed accesses before and after it, as the acquire and release forms would. fence.acq_rel.gpu,
// sm_70
__device__ __forceinline__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" : : : "memory"); }

// Every spin goes through here, so that the emulation can let others run.
template <class Condition>
__device__ __forceinline__ void poll_until(Condition&& condition) {
  while (!condition()) {
  }
}

// ---- Asynchronous copies from global into this block's shared memory

// `valid` bytes are copied, the rest become zero. cp.async.ca (4, 8 bytes) and cp.async.cg (16 bytes), sm_80
template <int Bytes, class T>
__device__ __forceinline__ void cp_async_zfill(T* destination, const void* source, unsigned valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(ptx_detail::shared_address(destination)), "l"(ptx_detail::global_address(source)),
                   "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(ptx_detail::shared_address(destination)), "l"(ptx_detail::global_address(source)),
                   "n"(Bytes), "r"(valid)
                 : "memory");
  }
}
template <int Bytes, class T>
__device__ __forceinline__ void cp_async(T* destination, const void* source) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(ptx_detail::shared_address(destination)), "l"(ptx_detail::global_address(source))
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                 :
                 : "r"(ptx_detail::shared_address(destination)), "l"(ptx_detail::global_address(source)),
                   "n"(Bytes)
                 : "memory");
  }
}
// cp.async.commit_group, sm_80
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits for this thread's groups but the `Newest` last ones. Other threads see them after a barrier.
// cp.async.wait_group, sm_80
template <int Newest>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(Newest) : "memory");
}
// Waits for all of this thread's copies, committed or not. cp.async.wait_all, sm_80
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// ---- mbarriers

// An opaque object in shared memory.
struct alignas(8) Mbarrier {
  uint64_t opaque;
};

// By one thread; the others may use it after a barrier. `count` arrivals end a phase.
// mbarrier.init, sm_80
__device__ __forceinline__ void mbarrier_init(Shared<Mbarrier> barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;"
               :
               : "r"(ptx_detail::shared_address(barrier)), "r"(count)
               : "memory");
}

// By the thread that initialised, before the barrier that lets peers use it.
// fence.mbarrier_init.release.cluster, sm_90
__device__ __forceinline__ void fence_mbarrier_init() {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
#else
  trap();
#endif
}

// mbarrier.arrive, sm_80
__device__ __forceinline__ void mbarrier_arrive(Shared<Mbarrier> barrier) {
  asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}"
               :
               : "r"(ptx_detail::shared_address(barrier))
               : "memory");
}

// mbarrier.arrive.expect_tx, sm_90
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Shared<Mbarrier> barrier, unsigned bytes) {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  asm volatile(
      "{\n\t.reg .b64 state;\n\t"
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [%0], %1;\n\t}"
      :
      : "r"(ptx_detail::shared_address(barrier)), "r"(bytes)
      : "memory");
#else
  trap();
#endif
}

// `phase` counts from 0; whether it has ended. mbarrier.test_wait.parity, sm_80 (at cluster scope from sm_90)
__device__ __forceinline__ bool mbarrier_test(Shared<Mbarrier> barrier, unsigned phase) {
  uint32_t done;
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  asm volatile(
      "{\n\t.reg .pred ended;\n\t"
      "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, ended;\n\t}"
      : "=r"(done)
      : "r"(ptx_detail::shared_address(barrier)), "r"(phase & 1)
      : "memory");
#else
  asm volatile(
      "{\n\t.reg .pred ended;\n\t"
      "mbarrier.test_wait.parity.shared.b64 ended, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, ended;\n\t}"
      : "=r"(done)
      : "r"(ptx_detail::shared_address(barrier)), "r"(phase & 1)
      : "memory");
#endif
  return done != 0;
}

// Until `phase` has ended. mbarrier.try_wait.parity, sm_90, which may sleep; before, a loop of test_wait
__device__ __forceinline__ void mbarrier_wait(Shared<Mbarrier> barrier, unsigned phase) {
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n\t.reg .pred ended;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, ended;\n\t}"
        : "=r"(done)
        : "r"(ptx_detail::shared_address(barrier)), "r"(phase & 1)
        : "memory");
  } while (done == 0);
#else
  while (!mbarrier_test(barrier, phase)) {
  }
#endif
}

// ---- Asynchronous stores into the cluster's shared memory

// Stores `value` into the shared memory of a block of the cluster, later; then counts its bytes on an
// mbarrier there. Both pointers come from cluster_map. st.async.mbarrier::complete_tx::bytes, sm_90
template <class T>
__device__ __forceinline__ void st_async(Remote<T> destination, const T& value, Remote<Mbarrier> barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "st.async stores 4, 8 or 16 bytes");
#if RNNFUSED_ARCH == 0 || RNNFUSED_ARCH >= 900
  const uint32_t address = destination.address, completes = barrier.address;
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 :
                 : "r"(address), "r"(ptx_detail::bit_cast<uint32_t>(value)), "r"(completes)
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];"
                 :
                 : "r"(address), "l"(ptx_detail::bit_cast<uint64_t>(value)), "r"(completes)
                 : "memory");
  } else {
    const uint4 words = ptx_detail::bit_cast<uint4>(value);
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
        :
        : "r"(address), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"(completes)
        : "memory");
  }
#else
  trap();
#endif
}

// ---- Tensor cores

// N 8x8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8, 16 bytes; it gets
// elements 2 * (i % 4) and the next of row i / 4 of each matrix. ldmatrix.m8n8, sm_75
template <int N, class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&fragments)[N], T* row) {
  static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const uint32_t address = ptx_detail::shared_address(row);
  if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(fragments[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragments[0]), "=r"(fragments[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(address)
                 : "memory");
  }
}

// d += a b, with a 16x16 and b 16x8 of T (Half or BFloat16), d 16x8 of float. mma.m16n8k16, sm_80
template <class T>
__device__ __forceinline__ void mma_sync(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_sync<Half>(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_sync<BFloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, with a 16x8 and b 8x8 of TF32, d 16x8 of float. mma.m16n8k8.tf32, sm_80
__device__ __forceinline__ void mma_sync_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounded to nearest, ties away from zero: a float whose lowest 13 bits do not count, whatever they are.
// cvt.rna.tf32.f32, sm_80
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
}

}  // namespace cuda
}  // namespace rnnfused
