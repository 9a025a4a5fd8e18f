// Moves memory that is only read into huge pages, where it lies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace farthing {

// Puts copies in huge pages in the place of all whole 2 MB inside [begin, begin + size), whatever is mapped there: the file
// behind it is no longer. Others may read it meanwhile; nobody may write or unmap it. Returns the bytes that were moved:
// none where the system gives no such memory.
std::size_t into_huge_pages(const std::uint8_t* begin, std::size_t size);

}  // namespace farthing
