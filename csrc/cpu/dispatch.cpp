#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#if defined(RNNFUSED_HAVE_NEON_DOT) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(RNNFUSED_HAVE_AVX512_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/log.h"
#include "cpu/pool.h"

namespace rnnfused {

#define RNNFUSED_DECLARE(isa)                          \
  namespace isa {                                      \
  extern const TypeKernels<float> kernels_float;       \
  extern const TypeKernels<double> kernels_double;     \
  extern const TypeKernels<BFloat16> kernels_BFloat16; \
  extern const TypeKernels<Half> kernels_Half;         \
  extern const TypeKernels<Int8> kernels_Int8;         \
  }
RNNFUSED_DECLARE(scalar)
RNNFUSED_DECLARE(avx2)
RNNFUSED_DECLARE(avx512)
RNNFUSED_DECLARE(avx512_vnni)
RNNFUSED_DECLARE(avx512_bf16)
RNNFUSED_DECLARE(avx512_amx)
RNNFUSED_DECLARE(neon)
RNNFUSED_DECLARE(neon_dot)
RNNFUSED_DECLARE(neon_bf16)
#undef RNNFUSED_DECLARE

namespace cpu {
namespace {

#define RNNFUSED_TABLE(isa) \
  {#isa,                    \
   &isa::kernels_float,     \
   &isa::kernels_double,    \
   &isa::kernels_BFloat16,  \
   &isa::kernels_Half,      \
   &isa::kernels_Int8}

#ifdef RNNFUSED_HAVE_AVX512_AMX
// Whether the processor has them and the system lets this process use them.
bool has_tile_registers() {
#ifdef RNNFUSED_AMX_EMULATED
  const char* wanted = std::getenv("RNNFUSED_ISA");
  return wanted && std::string(wanted) == "avx512_amx";
#elif defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAll = kBf16 | kTiles | kInt8;
  return (d & kAll) == kAll && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#ifdef RNNFUSED_HAVE_NEON_DOT
// What the system says of an Arm processor, and where it says it: which word of the auxiliary vector, which
// bit.
struct ArmFeature {
  int word, bit;
};
constexpr ArmFeature kDotProducts{0, 20}, kBf16{1, 14};  // HWCAP_ASIMDDP, HWCAP2_BF16

bool arm_has(ArmFeature feature) {
#ifdef __linux__
  return getauxval(feature.word == 0 ? AT_HWCAP : AT_HWCAP2) >> feature.bit & 1;
#else
  return feature.word == 0;  // every 64-bit processor of Apple's has dot products; only some have bfloat16
#endif
}
#endif

std::vector<const KernelTable*> available() {
  std::vector<const KernelTable*> tables;
#ifdef RNNFUSED_HAVE_SCALAR
  static const KernelTable plain = RNNFUSED_TABLE(scalar);
  tables.push_back(&plain);
#endif
#ifdef RNNFUSED_HAVE_AVX2
  static const KernelTable with_avx2 = RNNFUSED_TABLE(avx2);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    tables.push_back(&with_avx2);
#endif
#ifdef RNNFUSED_HAVE_AVX512
  static const KernelTable with_avx512 = RNNFUSED_TABLE(avx512);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    tables.push_back(&with_avx512);
#ifdef RNNFUSED_HAVE_AVX512_VNNI
    static const KernelTable with_vnni = {"avx512_vnni",    with_avx512.f32, with_avx512.f64,
                                          with_avx512.bf16, with_avx512.f16, &avx512_vnni::kernels_Int8};
    if (__builtin_cpu_supports("avx512vnni")) tables.push_back(&with_vnni);
#ifdef RNNFUSED_HAVE_AVX512_BF16
    // No processor has it without the other.
    static const KernelTable with_bf16 = {"avx512_bf16", with_vnni.f32,
                                          with_vnni.f64, &avx512_bf16::kernels_BFloat16,
                                          with_vnni.f16, with_vnni.i8};
    if (tables.back() == &with_vnni && __builtin_cpu_supports("avx512bf16")) tables.push_back(&with_bf16);
#ifdef RNNFUSED_HAVE_AVX512_AMX
    static const KernelTable with_amx = {"avx512_amx",  with_bf16.f32,
                                         with_bf16.f64, &avx512_amx::kernels_BFloat16,
                                         with_bf16.f16, &avx512_amx::kernels_Int8};
    if (tables.back() == &with_bf16 && has_tile_registers()) tables.push_back(&with_amx);
#endif
#endif
#endif
  }
#endif
#ifdef RNNFUSED_HAVE_NEON
  static const KernelTable with_neon = RNNFUSED_TABLE(neon);
  tables.push_back(&with_neon);
#ifdef RNNFUSED_HAVE_NEON_DOT
  static const KernelTable with_dot = {"neon_dot",     with_neon.f32, with_neon.f64,
                                       with_neon.bf16, with_neon.f16, &neon_dot::kernels_Int8};
  if (arm_has(kDotProducts)) tables.push_back(&with_dot);
#ifdef RNNFUSED_HAVE_NEON_BF16
  static const KernelTable with_bf16 = {
      "neon_bf16", with_dot.f32, with_dot.f64, &neon_bf16::kernels_BFloat16, with_dot.f16, with_dot.i8};
  if (tables.back() == &with_dot && arm_has(kBf16)) tables.push_back(&with_bf16);
#endif
#endif
#endif
  return tables;
}
#undef RNNFUSED_TABLE

const KernelTable* choose() {
  const std::vector<const KernelTable*> tables = available();
  if (tables.empty())
    throw std::runtime_error(
        "rnnfused was built for another processor (RNNFUSED_ISAS=NATIVE): build it anew");
  const char* wanted = std::getenv("RNNFUSED_ISA");
  if (!wanted || !*wanted) return tables.back();
  std::string names;
  for (const KernelTable* table : tables) {
    if (std::string(table->isa) == wanted) return table;
    names += std::string(names.empty() ? "" : ", ") + table->isa;
  }
  throw std::runtime_error("RNNFUSED_ISA: expected one of " + names + " on this machine, got '" + wanted +
                           "'");
}

template <class S>
const CellKernels<S>& cell_kernels(CellId cell) {
  return kernels().of<S>().cells[int(cell)];
}
template <class S>
const CellKernels<S>& cell_kernels(CellId cell, const Variation<Compute<S>>* variation) {
  return variation ? kernels().of<S>().staged : cell_kernels<S>(cell);
}

// Scratch is kept by the calling thread from call to call, unless it is large: the pool's is forward's tape
// or backward's gradients at another time.
constexpr Index kOwnScratch = pool::kLarge;

Scratch& kept_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

template <class LayerType>
void run(TeamKernel<LayerType> kernel, const LayerType& layer, const Plan& plan, int streams,
         Index scratch_bytes) {
  if (scratch_bytes >= kOwnScratch)
    return run_team(kernel, layer, plan, streams, pool::owned(size_t(scratch_bytes)).get());
  run_team(kernel, layer, plan, streams, kept_scratch().at_least(std::max<Index>(64, scratch_bytes)));
}

void log_plan(const char* what, CellId cell, const SequenceShape& shape, int layers, int directions,
              const Plan& plan) {
  if (!logs_plans()) return;
  std::fprintf(stderr,
               "rnnfused: %s %s T=%lld B=%lld I=%lld H=%lld layers=%d directions=%d isa=%s mode=%s groups=%d "
               "members=%d shards=%d wave=%d\n",
               what, kernels().info(cell).name, (long long)shape.steps, (long long)shape.batch,
               (long long)shape.input, (long long)shape.hidden, layers, directions, kernels().isa,
               mode_of(plan), plan.groups, plan.members, plan.shards, plan.wave);
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable* table = choose();
  return *table;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available()) names.emplace_back(table->isa);
  return names;
}

template <class S>
int terms_at_once() {
  return kernels().of<S>().terms;
}

TapeSize tape_size(CellId cell, bool projected) { return cell_kernels<float>(cell).tape_size(projected); }

template <class S>
Plan plan(CellId cell, const SequenceShape& shape, int layers, int directions, int threads, bool backward,
          bool staged) {
  // Of sequences that end at different steps, what a step holds on average.
  const Index batch =
      shape.offsets && shape.steps > 0 ? (shape.rows() + shape.steps - 1) / shape.steps : shape.batch;
  const TypeKernels<S>& type = kernels().of<S>();
  PlanInput in{shape.steps,          batch,        shape.input,
               shape.hidden,         shape.output, staged ? 1 : kernels().info(cell).gates,
               directions,           type.lanes,   type.bytes,
               std::max(threads, 1), backward,     layers,
               type.terms,           !staged};
  const Plan wanted = make_plan(in);
  if (wanted.threads() == 1) return wanted;
  // Only now the system is asked: a short call on one thread need not wait for the answer.
  in.threads = std::min(threads, usable_threads());
  return in.threads == threads ? wanted : make_plan(in);
}

namespace {

template <class S>
Plan plan_stack(const char* what, CellId cell, const Stack<S>& stack, int threads) {
  const int usable = Scarcity::threads(threads);
  const Plan chosen = plan<S>(cell, stack.shape(), stack.layers, stack.directions(), usable, false,
                              stack.layer[0].forward[0].variation);
  log_plan(what, cell, stack.shape(), stack.layers, stack.directions(), chosen);
  return chosen;
}

template <class S>
void run_stack(const CellKernels<S>& k, const Stack<S>& stack, const Plan& plan) {
  run(k.forward, stack, plan, awaited_streams(stack, plan), k.forward_scratch(stack, plan));
}

}  // namespace

template <class S>
void forward(CellId cell, const Stack<S>& stack, int threads) {
  run_stack(cell_kernels<S>(cell, stack.layer[0].forward[0].variation), stack,
            plan_stack("forward", cell, stack, threads));
}

template <class S>
void PackedStack::forward(CellId cell, Stack<S> stack, int threads) {
  const CellKernels<S>& k = cell_kernels<S>(cell, stack.layer[0].forward[0].variation);
  const Plan chosen = plan_stack("packed", cell, stack, threads);
  // Only weights that are widened are laid out for few inputs.
  const bool few = kNarrow<S> && terms_at_once<S>() == 1 && few_inputs(stack.shape().rows());
  Scratch& memory = memory_[{chosen.members, few_rows(chosen, stack.shape().batch), few}];
  if (memory.size() == 0) {
    stack.packed = memory.at_least(std::max<Index>(64, k.packed_bytes(stack, chosen)));
    run_team(k.pack, stack, chosen, 0, nullptr);
  }
  stack.packed = memory.data();
  run_stack(k, stack, chosen);
}

template <class S>
void backward(CellId cell, const LayerGradient<S>& layer, int threads) {
  const SequenceShape& shape = layer.backward[0].shape;
  const Variation<Compute<S>>* const variation = layer.backward[0].variation;
  const Plan chosen = plan<S>(cell, shape, 1, layer.directions, Scarcity::threads(threads), true, variation);
  log_plan("backward", cell, shape, 1, layer.directions, chosen);
  const CellKernels<S>& k = cell_kernels<S>(cell, variation);
  run(k.backward, layer, chosen, 0, k.backward_scratch(layer, chosen));
}

namespace {

// Gates of a step below which a second thread costs more than it does.
constexpr Index kGatesPerThread = 2048;
constexpr Index kTermsPerGate = 16;  // of a product, that take as long as a gate's activation and its tangent

template <class Args>
struct StepsCall {
  StepKernel<Args> kernel;
  const Args* steps;
  Index count;
  int threads;
  Barrier barrier;

  static void body(void* self, int thread) {
    auto& call = *static_cast<StepsCall*>(self);
    for (Index i = 0; i < call.count; ++i) {
      if (i > 0 && call.threads > 1) call.barrier.wait();
      call.kernel(call.steps[i], call.threads, thread);
    }
  }
};

template <class Args, class RowsOf>
void run_steps(StepKernel<Args> kernel, CellId cell, const Args* steps, Index count, int threads,
               RowsOf rows_of) {
  if (count == 0) return;
  Index work = 0;
  for (Index i = 0; i < count; ++i) {
    const Index gates = rows_of(steps[i]) * steps[i].hidden * kernels().info(cell).gates;
    work += gates + (steps[i].recurrent ? gates / kTermsPerGate * steps[i].hidden : 0);
  }
  int used = int(std::clamp<Index>(work / count / kGatesPerThread, 1, std::max(threads, 1)));
  if (used > 1) used = std::min(used, usable_threads());
  StepsCall<Args> call{kernel, steps, count, used, Barrier(used)};
  parallel(used, &StepsCall<Args>::body, &call);
}

}  // namespace

template <class T>
const TangentKernels<T>& tangent_kernels(CellId cell) {
  return kernels().of<T>().tangents[int(cell)];
}

template <class T>
void tangent_forward(CellId cell, const TangentForward<T>* steps, Index count, int threads) {
  run_steps(tangent_kernels<T>(cell).forward, cell, steps, count, threads,
            [](const TangentForward<T>& step) { return step.rows; });
}

template <class T>
void tangent_backward(CellId cell, const TangentBackward<T>* steps, Index count, int threads) {
  run_steps(tangent_kernels<T>(cell).backward, cell, steps, count, threads,
            [](const TangentBackward<T>& step) { return std::max(step.rows, step.after_rows); });
}

#define RNNFUSED_INSTANTIATE(S)                                                   \
  template int terms_at_once<S>();                                                \
  template Plan plan<S>(CellId, const SequenceShape&, int, int, int, bool, bool); \
  template void forward<S>(CellId, const Stack<S>&, int);                         \
  template void PackedStack::forward<S>(CellId, Stack<S>, int);
RNNFUSED_INSTANTIATE(Int8)
#define RNNFUSED_INSTANTIATE_WITH_GRADIENTS(S) \
  RNNFUSED_INSTANTIATE(S)                      \
  template void backward<S>(CellId, const LayerGradient<S>&, int);
RNNFUSED_INSTANTIATE_WITH_GRADIENTS(float)
RNNFUSED_INSTANTIATE_WITH_GRADIENTS(double)
RNNFUSED_INSTANTIATE_WITH_GRADIENTS(BFloat16)
RNNFUSED_INSTANTIATE_WITH_GRADIENTS(Half)
#undef RNNFUSED_INSTANTIATE_WITH_GRADIENTS
#undef RNNFUSED_INSTANTIATE

#define RNNFUSED_INSTANTIATE(T)                                                   \
  template const TangentKernels<T>& tangent_kernels<T>(CellId);                   \
  template void tangent_forward<T>(CellId, const TangentForward<T>*, Index, int); \
  template void tangent_backward<T>(CellId, const TangentBackward<T>*, Index, int);
RNNFUSED_INSTANTIATE(float)
RNNFUSED_INSTANTIATE(double)
#undef RNNFUSED_INSTANTIATE

}  // namespace cpu
}  // namespace rnnfused
