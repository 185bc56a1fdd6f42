// Chooses the kernels at run time. The only file that asks the CPU what it can do.
#include <cstdlib>
#include <stdexcept>

#include "binary_kernels.h"
#include "kernels.h"

#if defined(BITNET_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#elif defined(BITNET_X86)
#include <cpuid.h>
#elif defined(BITNET_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(BITNET_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(BITNET_ARM64) && defined(_WIN32)
#include <windows.h>
#endif

namespace bitnet {
namespace {

#if defined(BITNET_X86)
bool cpu_has_avx2() {
#if defined(_MSC_VER)
  int id[4];
  __cpuidex(id, 1, 0);
  const bool fma = id[2] & (1 << 12), f16c = id[2] & (1 << 29), osxsave = id[2] & (1 << 27);
  if (!(fma && f16c && osxsave) || (_xgetbv(0) & 6) != 6) return false;
  __cpuidex(id, 7, 0);
  return id[1] & (1 << 5);
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
}

#if defined(BITNET_AVX_VNNI)
// Asked by hand: the compilers' own functions learned the name late.
bool cpu_has_avx_vnni() {
  if (!cpu_has_avx2()) return false;  // which also asks whether the system saves the registers
#if defined(_MSC_VER)
  int id[4];
  __cpuidex(id, 7, 0);
  if (id[0] < 1) return false;
  __cpuidex(id, 7, 1);
  return id[0] & (1 << 4);
#else
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || eax < 1) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1 << 4));
#endif
}
#endif

// Asked by hand, as AVX-VNNI is; only of CPUs with AVX-512, whose registers the system then saves.
// AVX512-VNNI does not promise it: Cascade Lake has the one and not the other.
bool cpu_has_vpopcntdq() {
#if defined(_MSC_VER)
  int id[4];
  __cpuidex(id, 7, 0);
  return id[2] & (1 << 14);
#else
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx & (1 << 14));
#endif
}

bool cpu_has_avx512_vnni() {
#if defined(_MSC_VER)
  int id[4];
  if (!cpu_has_avx2() || (_xgetbv(0) & 0xe6) != 0xe6) return false;
  __cpuidex(id, 7, 0);
  const bool f = id[1] & (1 << 16), dq = id[1] & (1 << 17), bw = id[1] & (1 << 30), vl = id[1] & (1u << 31);
  return f && dq && bw && vl && (id[2] & (1 << 11));
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#endif
}
#endif

#if defined(BITNET_ARM64)
// False on systems that are not asked here: NEON serves them.
bool cpu_has_dot_product() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return getauxval(AT_HWCAP) & kDotProduct;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#elif defined(_WIN32)
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, which old headers lack
  return IsProcessorFeaturePresent(kDotProduct);
#else
  return false;
#endif
}
#endif

bool cpu_runs(const Kernels& kernels) {
#if defined(BITNET_X86)
  if (&kernels == &avx512_vnni_kernels) return cpu_has_avx512_vnni();
#if defined(BITNET_AVX_VNNI)
  if (&kernels == &avx_vnni_kernels) return cpu_has_avx_vnni();
#endif
  if (&kernels == &avx2_kernels) return cpu_has_avx2();
#elif defined(BITNET_ARM64)
  if (&kernels == &neon_dotprod_kernels) return cpu_has_dot_product();
#endif
  (void)kernels;
  return true;  // scalar always, NEON on every 64-bit ARM CPU
}

}  // namespace

std::vector<const Kernels*> compiled_kernels() {
  std::vector<const Kernels*> list;
#if defined(BITNET_X86)
  list.push_back(&avx512_vnni_kernels);
#if defined(BITNET_AVX_VNNI)
  list.push_back(&avx_vnni_kernels);
#endif
  list.push_back(&avx2_kernels);
#elif defined(BITNET_ARM64)
  list.push_back(&neon_dotprod_kernels);
  list.push_back(&neon_kernels);
#endif
  list.push_back(&scalar_kernels);
  return list;
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> list;
  for (const Kernels* kernels : compiled_kernels())
    if (cpu_runs(*kernels)) list.push_back(kernels);
  return list;
}

const Kernels& select_kernels(const std::string& name) {
  std::string wanted = name;
  if (wanted.empty()) {
    const char* variable = std::getenv("BITNET_ISA");
    if (variable != nullptr) wanted = variable;
  }
  std::string choices;
  for (const Kernels* kernels : supported_kernels()) {
    if (wanted.empty() || wanted == kernels->name) return *kernels;
    choices += choices.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("instruction set '" + wanted +
                              "' is unknown or not available on this CPU; BITNET_ISA may be " + choices);
}

const BinaryKernels& binary_kernels(const Kernels& kernels) {
#if defined(BITNET_X86)
  if (&kernels == &avx512_vnni_kernels && cpu_has_vpopcntdq()) return avx512_binary_kernels;
  if (&kernels != &scalar_kernels) return avx2_binary_kernels;
#elif defined(BITNET_ARM64)
  if (&kernels != &scalar_kernels) return neon_binary_kernels;
#endif
  (void)kernels;
  return scalar_binary_kernels;
}

}  // namespace bitnet
