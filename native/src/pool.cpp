#include "pool.h"

#include <chrono>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace farthing {
namespace {

// How long a thread spins before it sleeps: about what a sleep and its wake-up cost (5 to 50 us here), so waiting is
// never more than twice as dear as the better choice would have been.
constexpr std::chrono::microseconds kSpin{40};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

Pool::Pool(int threads) : threads_(threads), shares_(new Share[threads]) {
  workers_.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stops_ = true;
    job_.fetch_add(1);
    wake(job_, job_sleepers_);
    for (auto& worker : workers_) worker.join();
    throw;
  }
}

Pool::~Pool() {
  stops_ = true;
  job_.fetch_add(1);
  wake(job_, job_sleepers_);
  for (auto& worker : workers_) worker.join();
}

bool Pool::wait_change(std::atomic<std::uint32_t>& word, std::uint32_t seen, std::atomic<std::uint32_t>& sleepers) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (word.load(std::memory_order_acquire) != seen) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < until);
  sleepers.fetch_add(1);
  while (word.load() == seen) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    word.wait(seen);
#endif
  }
  sleepers.fetch_sub(1);
  return false;
}

void Pool::wake(std::atomic<std::uint32_t>& word, std::atomic<std::uint32_t>& sleepers) {
  if (sleepers.load() == 0) return;
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 1 << 20, nullptr, nullptr, 0);
#else
  word.notify_all();
#endif
}

void Pool::work(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_change(job_, seen, job_sleepers_);
    ++seen;  // jobs come one at a time: the next is given only after all threads finished this one
    if (stops_) return;
    (*body_)(index);
    barrier();
  }
}

void Pool::run(const std::function<void(int)>& body) {
  body_ = &body;
  if (threads_ > 1) {
    job_.fetch_add(1);
    wake(job_, job_sleepers_);
  }
  body(0);
  barrier();
}

void Pool::barrier() {
  const auto begin_again = [this] {
    counter_.store(0, std::memory_order_relaxed);
    for (int i = 0; i < threads_; ++i) shares_[i].taken.store(0, std::memory_order_relaxed);
  };
  if (threads_ == 1) return begin_again();
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    begin_again();
    phase_.fetch_add(1);
    wake(phase_, phase_sleepers_);
  } else {
    wait_change(phase_, phase, phase_sleepers_);
  }
}

}  // namespace farthing
