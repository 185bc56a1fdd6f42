// A fixed set of threads that run numbered tasks. The caller works too, so `threads` counts it.
//
// Workers spin briefly after a job, because the next one of the same forward is microseconds away, and
// park when none comes. One job at a time: `run` must not be called from two threads at once or from
// within a task.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace bitnet {

std::size_t physical_cores();

class ThreadPool {
 public:
  // Throws std::invalid_argument where the system starts no more threads.
  explicit ThreadPool(std::size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const { return threads_; }

  // Calls f(task, thread) for every task in 0..tasks-1, thread in 0..threads-1, in any order; returns
  // when all are done. f must not throw. In the child of a fork the first job starts threads anew, and throws
  // as the constructor does.
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
  class Team;

  void start(std::size_t tasks, Task task, void* function);
  void forget_parents_team();

  std::size_t threads_;
  std::unique_ptr<Team> team_;
};

}  // namespace bitnet
