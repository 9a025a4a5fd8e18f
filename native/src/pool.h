// Threads that run one forward pass together: the caller and threads - 1 workers.
//
// A pass is one parallel region with barriers between its phases. Inside a phase, threads take items from one counter, so
// a core that the server's own thread interrupts takes fewer; who computes an item never changes its bits. Waiting spins
// shortly, then sleeps in the kernel: an idle pool costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace farthing {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Runs body(0) here and body(1..threads-1) on the workers; returns when all are done. `body` must not throw.
  void run(const std::function<void(int)>& body);

  // Inside a body: the next item of this phase, each number once.
  int take() { return counter_.fetch_add(1, std::memory_order_relaxed); }

  // Inside a body: returns when all threads have come here, with the counter at 0 again.
  void barrier();

 private:
  void work(int index);
  bool wait_change(std::atomic<std::uint32_t>& word, std::uint32_t seen, std::atomic<std::uint32_t>& sleepers);
  void wake(std::atomic<std::uint32_t>& word, std::atomic<std::uint32_t>& sleepers);

  const int threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  bool stops_ = false;

  alignas(64) std::atomic<int> counter_{0};
  alignas(64) std::atomic<std::uint32_t> job_{0};       // changes when there is work (or the end)
  std::atomic<std::uint32_t> job_sleepers_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};     // changes when the last thread reaches a barrier
  std::atomic<std::uint32_t> phase_sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
};

}  // namespace farthing
