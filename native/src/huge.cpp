// Moves memory that is only read into huge pages: a core that streams through pages of 4 KB asks for their translations all
// the time, and its prefetcher stops at the end of each.
#include "huge.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace farthing {

#if defined(__linux__) && defined(MADV_HUGEPAGE)

namespace {

constexpr std::size_t kHuge = 2 << 20;
constexpr std::size_t kAtOnce = 16 * kHuge;  // so little is there twice

std::uint8_t* rounded_up(std::uint8_t* p) {
  return reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(p) + kHuge - 1) / kHuge * kHuge);
}

// One call of the kernel both takes away what is at `place` and puts the copy there; who reads in between waits for it.
bool replace(std::uint8_t* place, std::size_t size) {
  const std::size_t room = size + kHuge;
  void* found = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return false;
  auto* memory = static_cast<std::uint8_t*>(found);
  std::uint8_t* copy = rounded_up(memory);
  bool is_done = false;
  if (madvise(copy, size, MADV_HUGEPAGE) == 0) {
    std::memcpy(copy, place, size);
    is_done = mprotect(copy, size, PROT_READ) == 0 &&
              mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) != MAP_FAILED;
  }
  if (copy != memory) munmap(memory, copy - memory);
  if (!is_done) munmap(copy, size);
  if (copy + size != memory + room) munmap(copy + size, memory + room - (copy + size));
  return is_done;
}

}  // namespace

std::size_t into_huge_pages(const std::uint8_t* begin, std::size_t size) {
  std::uint8_t* const first = const_cast<std::uint8_t*>(begin);
  std::uint8_t* const end = first + size;
  std::size_t moved = 0;
  for (std::uint8_t* p = rounded_up(first); p + kHuge <= end;) {
    const std::size_t some = std::min(kAtOnce, static_cast<std::size_t>(end - p) / kHuge * kHuge);
    if (!replace(p, some)) break;
    moved += some;
    p += some;
  }
  return moved;
}

#else

std::size_t into_huge_pages(const std::uint8_t*, std::size_t) { return 0; }

#endif

}  // namespace farthing
