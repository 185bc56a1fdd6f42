#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <fstream>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
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

// How often the process was forked on the way from its first ancestor that had a pool to this one. Counted by
// a handler and not seen from the process's number: that would be a system call a job.
std::size_t forks() {
  static std::atomic<std::size_t> count{0};
#if !defined(_WIN32)
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);  // out of memory: forks go unnoticed
#endif
  return count.load(std::memory_order_relaxed);
}

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

// The workers and what they share.
class ThreadPool::Team {
 public:
  explicit Team(std::size_t threads);
  ~Team() { stop(); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  void run(std::size_t tasks, Task task, void* function);
  bool of_parent() const { return forks_ != forks(); }

 private:
  void work(std::size_t thread);
  void worker(std::size_t thread);
  void stop();

  const std::size_t forks_ = forks();
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Task task_ = nullptr;
  void* function_ = nullptr;
  std::size_t tasks_ = 0;
  alignas(64) std::atomic<std::uint64_t> job_{0};  // counts jobs; a change is the signal to start
  alignas(64) std::atomic<std::size_t> next_{0};   // the next task to take
  alignas(64) std::atomic<std::size_t> busy_{0};   // workers that have not finished the current job
  std::size_t parked_ = 0;                         // guarded by mutex_
  bool stop_ = false;                              // written once, published by job_
};

ThreadPool::Team::Team(std::size_t threads) {
  try {
    workers_.reserve(threads - 1);
    for (std::size_t thread = 1; thread < threads; ++thread)
      workers_.emplace_back(&Team::worker, this, thread);
  } catch (const std::system_error&) {
    const std::size_t started = workers_.size() + 1;
    stop();
    throw std::invalid_argument("the system gives " + std::to_string(started) + " of " +
                                std::to_string(threads) + " threads; ask for fewer");
  } catch (...) {  // no memory for a thread's start
    stop();
    throw;
  }
}

void ThreadPool::Team::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::Team::run(std::size_t tasks, Task task, void* function) {
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

void ThreadPool::Team::work(std::size_t thread) {
  for (std::size_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;)
    task_(function_, task, thread);
}

void ThreadPool::Team::worker(std::size_t thread) {
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

ThreadPool::ThreadPool(std::size_t threads)
    : threads_(std::max<std::size_t>(threads, 1)), team_(std::make_unique<Team>(threads_)) {}

ThreadPool::~ThreadPool() {
  if (team_ != nullptr && team_->of_parent()) forget_parents_team();
}

void ThreadPool::start(std::size_t tasks, Task task, void* function) {
  if (team_ != nullptr && team_->of_parent()) forget_parents_team();
  if (team_ == nullptr) team_ = std::make_unique<Team>(threads_);
  team_->run(tasks, task, function);
}

// Its threads are not in this process, and would be waited for: by a job, by join(), and by the destructor of
// the condition variable they sleep on.
void ThreadPool::forget_parents_team() {
  static_cast<void>(team_.release());
}

}  // namespace bitnet
