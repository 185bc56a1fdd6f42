// What the self-tests of the kernels have in common: the first difference of each kernel, and their list.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

namespace bitnet {

class SelfTestReport {
 protected:
  void compare(const std::string& what, bool equal) {
    if (detail_.empty() && !equal) detail_ = what;
  }

  // Bit for bit, so that NaN equals itself and 0 does not equal -0.
  template <class T>
  void compare(const std::string& what, const std::vector<T>& expected, const std::vector<T>& found) {
    compare(what, std::memcmp(expected.data(), found.data(), expected.size() * sizeof(T)) == 0);
  }

  // Ends the comparisons of one kernel.
  void finish(const std::string& kernel) {
    results_.push_back({kernel, detail_.empty(), detail_.empty() ? "" : "differs from scalar at " + detail_});
    detail_.clear();
  }

  const std::vector<SelfTestResult>& results() const { return results_; }

 private:
  std::string detail_;
  std::vector<SelfTestResult> results_;
};

}  // namespace bitnet
