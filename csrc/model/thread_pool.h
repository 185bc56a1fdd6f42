// A fixed set of threads that run numbered tasks. The caller works too, so `threads` counts it.
//
// Workers spin briefly after a job, because the next one of the same forward is microseconds away, and
// park when none comes. One job at a time: `run` must not be called from two threads at once or from
// within a task.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace bitnet {

std::size_t physical_cores();

class ThreadPool {
 public:
  // Throws std::invalid_argument where the system starts no more threads.
  explicit ThreadPool(std::size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const { return workers_.size() + 1; }

  // Calls f(task, thread) for every task in 0..tasks-1, thread in 0..threads-1, in any order; returns
  // when all are done. f must not throw.
  template <class Function>
  void run(std::size_t tasks, Function&& f) {
    start(
        tasks,
        [](void* function, std::size_t task, std::size_t thread) {
          (*static_cast<std::remove_reference_t<Function>*>(function))(task, thread);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Task = void (*)(void* function, std::size_t task, std::size_t thread);

  void start(std::size_t tasks, Task task, void* function);
  void work(std::size_t thread);
  void worker(std::size_t thread);
  void stop();

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

}  // namespace bitnet
