// Memory of keys and values, taken from the system before it is needed.
#include "populate.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>

namespace farthing {
namespace {

constexpr std::size_t kHuge = 2 << 20;
constexpr std::size_t kPage = 4096;
// Not worth a thread.
constexpr std::size_t kSmall = 16 * kHuge;
// Loading comes first.
constexpr std::chrono::seconds kBegin{1};
// Huge pages of each layer that are ahead once there was time for them.
constexpr std::size_t kAhead = 2;
// Nobody has computed for so long: nobody is about to.
constexpr std::chrono::milliseconds kIdle{20};
// Where somebody always does, a huge page, which may take 5 ms of a core, follows the one before after so many of these.
constexpr int kWaitsBusy = 5;

// False where the system cannot.
bool populate(std::uint8_t* begin, std::size_t size) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14
  const auto at = reinterpret_cast<std::uintptr_t>(begin) / kPage * kPage;
  const std::size_t bytes = (reinterpret_cast<std::uintptr_t>(begin) + size - at + kPage - 1) / kPage * kPage;
  return madvise(reinterpret_cast<void*>(at), bytes, kPopulateWrite) == 0;
#else
  static_cast<void>(begin), static_cast<void>(size);
  return false;
#endif
}

}  // namespace

Populator::Populator(std::uint8_t* memory, std::size_t layers, std::size_t blocks, std::size_t block_bytes)
    : memory_(memory), layers_(layers), blocks_(blocks), block_bytes_(block_bytes), step_((kHuge + block_bytes - 1) / block_bytes) {
  if (layers * blocks * block_bytes >= kSmall) thread_ = std::thread([this] { work(); });
}

Populator::~Populator() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard held(mutex_);
    stops_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Populator::begin(std::size_t count) {
  bool is_more;
  {
    const std::lock_guard held(mutex_);
    is_running_ = true;
    ++steps_;
    is_more = count > used_;
    used_ = std::max(used_, count);
  }
  if (is_more) changed_.notify_one();
}

void Populator::end() {
  const std::lock_guard held(mutex_);
  is_running_ = false;
}

bool Populator::is_wanted() const { return populated_ < std::min(blocks_, used_ + kAhead * step_); }
bool Populator::is_urgent() const { return populated_ < std::min(blocks_, used_ + step_); }

std::size_t Populator::populated() {
  const std::lock_guard held(mutex_);
  return populated_;
}

void Populator::work() {
  std::unique_lock held(mutex_);
  changed_.wait_for(held, kBegin, [&] { return stops_; });
  for (;;) {
    changed_.wait(held, [&] { return stops_ || is_wanted(); });
    const std::size_t first = std::max(populated_, used_);  // those in use have been touched by whoever uses them
    const std::size_t count = std::min(step_, blocks_ - std::min(first, blocks_));
    for (std::size_t layer = 0; layer < layers_ && count; ++layer) {
      for (int waits = 0; waits < kWaitsBusy && !stops_ && !is_urgent(); ++waits) {
        const std::uint64_t seen = steps_;
        changed_.wait_for(held, kIdle, [&] { return stops_ || is_urgent(); });
        if (!is_running_ && steps_ == seen) break;
      }
      if (stops_) return;
      held.unlock();
      const bool is_done = populate(memory_ + (layer * blocks_ + first) * block_bytes_, count * block_bytes_);
      held.lock();
      if (!is_done) return;
    }
    if (stops_) return;
    populated_ = std::min(first + count, blocks_);
  }
}

}  // namespace farthing
