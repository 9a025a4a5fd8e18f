// Threads that run one forward pass together: the caller and threads - 1 workers.
//
// A pass is one parallel region with barriers between its phases. Inside a phase, threads take items one by one, so a core that
// the server's own thread interrupts takes fewer; who computes an item never changes its bits. Waiting spins shortly, then
// sleeps in the kernel: an idle pool costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
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

  // The same, where what follows each other lies side by side in memory: a thread takes the items [bound(thread), bound(thread
  // + 1)) in order, then what others have not begun, from their ends. bound(threads) when none are left.
  template <class Bound>
  int take_near(int thread, const Bound& bound) {
    for (int i = 0; i < threads_; ++i) {
      const int whose = (thread + i) % threads_, begin = bound(whose), end = bound(whose + 1);
      std::atomic<std::uint64_t>& taken = shares_[whose].taken;
      for (std::uint64_t seen = taken.load(std::memory_order_relaxed);;) {
        const int front = static_cast<int>(seen & 0xffffffff), back = static_cast<int>(seen >> 32);
        if (begin + front >= end - back) break;
        if (taken.compare_exchange_weak(seen, seen + (i ? std::uint64_t{1} << 32 : 1), std::memory_order_relaxed))
          return i ? end - 1 - back : begin + front;
      }
    }
    return bound(threads_);
  }

  // Inside a body: returns when all threads have come here, with nothing taken any more.
  void barrier();

 private:
  void work(int index);
  bool wait_change(std::atomic<std::uint32_t>& word, std::uint32_t seen, std::atomic<std::uint32_t>& sleepers);
  void wake(std::atomic<std::uint32_t>& word, std::atomic<std::uint32_t>& sleepers);

  const int threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  bool stops_ = false;

  struct alignas(64) Share {
    std::atomic<std::uint64_t> taken{0};  // from the front; from the end in the upper half
  };
  const std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int> counter_{0};
  alignas(64) std::atomic<std::uint32_t> job_{0};       // changes when there is work (or the end)
  std::atomic<std::uint32_t> job_sleepers_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};     // changes when the last thread reaches a barrier
  std::atomic<std::uint32_t> phase_sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
};

}  // namespace farthing
