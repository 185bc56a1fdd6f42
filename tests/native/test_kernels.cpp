// Prints one line a kernel and fails if any differs from the scalar one: the self-test without Python, for
// instruction sets of other machines under an emulator.
#include <cstdio>

#include "kernels/binary_kernels.h"

int main() {
  int failures = 0;
  for (const bitnet::Kernels* kernels : bitnet::supported_kernels()) {
    std::vector<bitnet::SelfTestResult> results = bitnet::self_test(*kernels);
    for (bitnet::SelfTestResult& result : bitnet::binary_self_test(bitnet::binary_kernels(*kernels)))
      results.push_back(result);
    for (const bitnet::SelfTestResult& result : results) {
      std::printf("%s %s %s %s\n", kernels->name, result.kernel.c_str(), result.passed ? "ok" : "FAILED",
                  result.detail.c_str());
      failures += result.passed ? 0 : 1;
    }
  }
  return failures == 0 ? 0 : 1;
}
