#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "buffer.h"
#include "thread_pool.h"

namespace bitnet {
namespace {

constexpr std::size_t kChunkWords = std::size_t{1} << 17;  // 1 MiB a task

// Eight independent sums, so that additions never hold back the loads.
std::uint64_t sum_words(const std::uint64_t* words, std::size_t count) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  std::uint64_t total = 0;
  for (std::uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double read_bandwidth(std::size_t threads, std::size_t megabytes) {
  const std::size_t chunks = std::max<std::size_t>(megabytes * 1000000 / 8 / kChunkWords, 1);
  Buffer<std::uint64_t> memory(chunks * kChunkWords);
  ThreadPool pool(threads);
  // Written first, and with values: untouched pages would all be the one zero page.
  pool.run(chunks, [&](std::size_t chunk, std::size_t) {
    std::uint64_t* words = memory.data() + chunk * kChunkWords;
    for (std::size_t i = 0; i < kChunkWords; ++i) words[i] = i ^ chunk;
  });
  std::atomic<std::uint64_t> sink{0};  // keeps the compiler from dropping the reads
  double best = 0.0;
  for (int pass = 0; pass < 5; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(chunks, [&](std::size_t chunk, std::size_t) {
      sink.fetch_xor(sum_words(memory.data() + chunk * kChunkWords, kChunkWords), std::memory_order_relaxed);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(chunks * kChunkWords * 8) / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace bitnet
