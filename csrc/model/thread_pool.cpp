#include "thread_pool.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace bitnet {
namespace {

// About 20 microseconds: several times the gap between two jobs of one forward, far below a scheduler tick.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
// Distinct (package, core) pairs among the CPUs this process may run on.
std::size_t linux_physical_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 0;
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    int package = 0, core = cpu;
    std::ifstream(folder + "physical_package_id") >> package;
    std::ifstream(folder + "core_id") >> core;
    cores.insert({package, core});
  }
  return cores.size();
}
#endif

}  // namespace

std::size_t physical_cores() {
  std::size_t cores = 0;
#if defined(__linux__)
  cores = linux_physical_cores();
#elif defined(__APPLE__)
  int count = 0;
  std::size_t size = sizeof(count);
  if (sysctlbyname("hw.physicalcpu", &count, &size, nullptr, 0) == 0) cores = static_cast<std::size_t>(count);
#endif
  if (cores == 0) cores = std::thread::hardware_concurrency();
  return std::max<std::size_t>(cores, 1);
}

ThreadPool::ThreadPool(std::size_t threads) {
  try {
    for (std::size_t thread = 1; thread < threads; ++thread)
      workers_.emplace_back(&ThreadPool::worker, this, thread);
  } catch (const std::system_error&) {
    const std::size_t started = workers_.size() + 1;
    stop();
    throw std::invalid_argument("the system gives " + std::to_string(started) + " of " +
                                std::to_string(threads) + " threads; ask for fewer");
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::start(std::size_t tasks, Task task, void* function) {
  task_ = task;
  function_ = function;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  if (workers_.empty() || tasks <= 1) {
    work(0);
    return;
  }
  busy_.store(workers_.size(), std::memory_order_relaxed);
  bool anyone_parked;
  {
    // Under the mutex: a worker decides to park under it too, so it either sees the new job or is counted.
    std::lock_guard<std::mutex> lock(mutex_);
    job_.fetch_add(1, std::memory_order_release);
    anyone_parked = parked_ > 0;
  }
  if (anyone_parked) wake_.notify_all();
  work(0);
  // Tasks are short, so the stragglers finish soon; yield in case they lost their core.
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins)
    spins < kSpins ? pause() : std::this_thread::yield();
}

void ThreadPool::work(std::size_t thread) {
  for (std::size_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;)
    task_(function_, task, thread);
}

void ThreadPool::worker(std::size_t thread) {
  std::uint64_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && job_.load(std::memory_order_acquire) == seen; ++spins) pause();
    if (job_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++parked_;
      wake_.wait(lock, [&] { return job_.load(std::memory_order_acquire) != seen; });
      --parked_;
    }
    seen = job_.load(std::memory_order_acquire);
    if (stop_) return;
    work(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace bitnet
