// Weights into the layout of the tile kernels; run once a checkpoint, so plain C++ on all threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace farthing {

// A matrix without weights: what padding multiplies by.
void pack_nothing(Format format, std::uint8_t* out, std::size_t outputs, std::size_t inputs, std::size_t block);

// Rows of float32 [count][columns] to outputs `to` of a packed matrix with `inputs` >= columns.
void pack_rows(Format format, const float* rows, std::size_t count, std::size_t columns, const std::int32_t* to,
               std::uint8_t* out, std::size_t inputs, std::size_t block, int threads);

// Rows stored as GGUF's Q4_1 (20 bytes a block of 32) or Q4_0 (18 bytes), exactly, to a q4 matrix.
void pack_q4_blocks(Format format, bool has_minimum, const std::uint8_t* rows, std::size_t count, std::size_t inputs,
                    const std::int32_t* to, std::uint8_t* out, int threads);

// 64 bits that change when a byte does; for accidents, not for enemies. The same whatever the number of threads.
std::uint64_t checksum(const std::uint8_t* bytes, std::size_t size, int threads);

}  // namespace farthing
