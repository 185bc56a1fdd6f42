// The self-test over the AVX-VNNI kernels on any CPU with AVX2: the one instruction they add is replaced by a
// few that do exactly the same. What this cannot show is what the real one does.
#include <immintrin.h>

#include <cstdio>

namespace {

// Four products of an unsigned and a signed byte added to each int32: even and odd bytes apart, as int16.
__m256i emulated_dpbusd(__m256i sum, __m256i a, __m256i b) {
  const __m256i a_even = _mm256_and_si256(a, _mm256_set1_epi16(255)), a_odd = _mm256_srli_epi16(a, 8);
  const __m256i b_even = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), b_odd = _mm256_srai_epi16(b, 8);
  const __m256i even = _mm256_madd_epi16(a_even, b_even), odd = _mm256_madd_epi16(a_odd, b_odd);
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

}  // namespace

#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
#include "kernels/avx_vnni.cpp"

int main() {
  int failures = 0;
  for (const bitnet::SelfTestResult& result : bitnet::self_test(bitnet::avx_vnni_kernels)) {
    std::printf("%s %s %s\n", result.kernel.c_str(), result.passed ? "ok" : "FAILED", result.detail.c_str());
    failures += result.passed ? 0 : 1;
  }
  return failures == 0 ? 0 : 1;
}
