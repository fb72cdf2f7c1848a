// Entry point of every C++ test program. ctest sets RNNFUSED_ISA and reads exit code 77 as "skipped".

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kUnknownIsa = 2;
constexpr int kSkipped = 77;

bool is_known(const char* isa) {
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx", "neon",
                           "neon_dot", "neon_bf16"}) {
    if (std::strcmp(isa, name) == 0) return true;
  }
  return false;
}

#if defined(__x86_64__)
bool has_tile_registers() {
#if defined(RNNFUSED_AMX_EMULATED)
  return true;
#elif defined(__linux__)
  constexpr unsigned kAll = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll &&
         syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

bool cpu_supports(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (std::strcmp(isa, "avx2") == 0) return avx2;
  if (std::strcmp(isa, "avx512") == 0) return avx512;
  if (std::strcmp(isa, "avx512_vnni") == 0) return avx512 && __builtin_cpu_supports("avx512vnni");
  if (std::strcmp(isa, "avx512_amx") == 0) return has_tile_registers();
  if (std::strcmp(isa, "avx512_bf16") == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
  if (std::strcmp(isa, "neon") == 0) return true;
  if (std::strcmp(isa, "neon_bf16") == 0) return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
  if (std::strcmp(isa, "neon_dot") == 0) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
  return std::strcmp(isa, "scalar") == 0;
}

// A test compiled for an ISA registers its cases in static initialisers, which may already use that ISA's
// instructions. This runs before them: priorities below 101 are reserved, ordinary initialisers come last.
__attribute__((constructor(101))) void skip_unless_supported() {
  const char* isa = std::getenv("RNNFUSED_ISA");
  if (isa == nullptr) return;
  if (!is_known(isa)) {
    std::fprintf(stderr, "RNNFUSED_ISA: no ISA is called %s\n", isa);
    _exit(kUnknownIsa);
  }
  if (!cpu_supports(isa)) {
    std::fprintf(stderr, "skipped: this CPU has no %s\n", isa);
    _exit(kSkipped);
  }
}

}  // namespace
