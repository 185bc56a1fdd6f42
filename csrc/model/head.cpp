#include "head.h"

#include <algorithm>
#include <cstring>

namespace bitnet {
namespace {

// 64 rows of 2560 bfloat16 are 328 KB: a task long enough to stream, short enough to balance.
constexpr std::size_t kTaskRows = 64;

}  // namespace

void embed(const Table& embedding, std::int32_t token, std::size_t hidden_size, float* hidden) {
  const std::size_t from = static_cast<std::size_t>(token) * hidden_size;
  if (embedding.f32 != nullptr) {
    std::memcpy(hidden, embedding.f32 + from, hidden_size * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < hidden_size; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(embedding.bf16[from + i]) << 16;
    std::memcpy(hidden + i, &bits, sizeof(bits));
  }
}

void run_head(const Config& config, const Kernels& kernels, ThreadPool& pool, const Table& head,
              const float* normed, std::size_t count, float* logits) {
  const std::size_t width = config.hidden_size;
  pool.run((config.vocab_size + kTaskRows - 1) / kTaskRows, [&](std::size_t task, std::size_t) {
    const std::size_t last = std::min((task + 1) * kTaskRows, config.vocab_size);
    for (std::size_t row = task * kTaskRows; row < last; ++row) {
      for (std::size_t t = 0; t < count; ++t) {
        const float* x = normed + t * width;
        logits[t * config.vocab_size + row] = head.f32 != nullptr
                                                  ? kernels.dot_f32(x, head.f32 + row * width, width)
                                                  : kernels.dot_bf16(x, head.bf16 + row * width, width);
      }
    }
  });
}

}  // namespace bitnet
