// Memory of keys and values, taken from the system before it is needed.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace farthing {

// Whoever first touches memory waits while the system clears it, and blocks of all layers reach new huge pages in the same
// step: it took ten times as long. A thread of its own goes ahead of the blocks in use: by some huge pages a layer, at
// once while nobody computes and else little by little, and by one whatever happens.
class Populator {
 public:
  // `memory` is [layers][blocks][block_bytes].
  Populator(std::uint8_t* memory, std::size_t layers, std::size_t blocks, std::size_t block_bytes);
  ~Populator();
  Populator(const Populator&) = delete;
  Populator& operator=(const Populator&) = delete;

  // A step begins, and blocks 0 to count - 1 are in use from now on; and it has ended. Only one thread calls them.
  void begin(std::size_t count);
  void end();
  // Blocks of which no layer will be waited for.
  std::size_t populated();

 private:
  void work();
  // Of what is ahead: something is missing; so little is there that a step might wait.
  bool is_wanted() const;
  bool is_urgent() const;

  std::uint8_t* const memory_;
  const std::size_t layers_, blocks_, block_bytes_, step_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t used_ = 0, populated_ = 0;
  std::uint64_t steps_ = 0;
  bool is_running_ = false, stops_ = false;
  std::thread thread_;
};

}  // namespace farthing
