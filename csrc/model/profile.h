// Time per part of the forward pass, measured by the calling thread, waits for the others included.
#pragma once

#include <array>
#include <chrono>

namespace bitnet {

enum class Part { projections, attention, output, gate_up, down, head };
constexpr std::size_t kParts = 6;
constexpr const char* kPartNames[kParts] = {"q/k/v", "attention", "output", "gate/up", "down", "head"};

// Reading the clock twice a part costs about 0.05 us, a forward has some 150 parts: it always runs.
class Profile {
 public:
  class Scope {
   public:
    Scope(Profile& profile, Part part) : seconds_(profile.seconds_[static_cast<std::size_t>(part)]) {}
    ~Scope() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    using Clock = std::chrono::steady_clock;
    double& seconds_;
    Clock::time_point start_ = Clock::now();
  };

  const std::array<double, kParts>& seconds() const { return seconds_; }

 private:
  std::array<double, kParts> seconds_{};
};

}  // namespace bitnet
