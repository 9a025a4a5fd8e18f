#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace farthing {
namespace {

template <class F>
void in_parallel(std::size_t count, std::size_t grain, int threads, const F& f) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t begin; (begin = next.fetch_add(grain)) < count;)
      for (std::size_t i = begin; i < std::min(begin + grain, count); ++i) f(i);
  };
  std::vector<std::thread> workers;
  for (int t = 1; t < threads && static_cast<std::size_t>(t) * grain < count; ++t) workers.emplace_back(work);
  work();
  for (auto& w : workers) w.join();
}

std::uint16_t to_f16(float x) {
  const auto h = static_cast<_Float16>(x);
  std::uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}

float from_f16(std::uint16_t bits) {
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}

void put_f32(const float* x, std::size_t n, std::size_t output, std::uint8_t* out, std::size_t inputs) {
  float* w = reinterpret_cast<float*>(out + output / kTile * panel_bytes(Format::f32, inputs, 1)) + output % kTile;
  for (std::size_t k = 0; k < n; ++k) w[k * kTile] = x[k];
}

void put_q8(const float* x, std::size_t n, std::size_t output, std::uint8_t* out, std::size_t inputs, std::size_t block) {
  std::uint8_t* panel = out + output / kTile * panel_bytes(Format::q8, inputs, block);
  const std::size_t column = output % kTile;
  for (std::size_t b = 0; b < n; b += block, panel += kTile * sizeof(float) + block * kTile) {
    const std::size_t size = std::min(block, n - b);
    float limit = 0;
    for (std::size_t i = 0; i < size; ++i) limit = std::max(limit, std::fabs(x[b + i]));
    const float scale = limit / 127.0f, factor = limit > 1e-30f ? 127.0f / limit : 0.0f;
    std::memcpy(panel + column * sizeof(float), &scale, sizeof scale);
    std::uint8_t* w = panel + kTile * sizeof(float) + column * 4;
    for (std::size_t i = 0; i < size; ++i)
      w[i / 4 * 4 * kTile + i % 4] = static_cast<std::uint8_t>(static_cast<int>(std::nearbyint(x[b + i] * factor)) + 128);
  }
}

// Scale and minimum with the least squared error among a few: for each candidate scale, the levels it gives, and for
// those levels the best line through the weights.
void fit_q4(const float* x, std::uint16_t& scale, std::uint16_t& minimum, std::uint8_t* levels) {
  constexpr int n = kQ4Block;
  float low = x[0], high = x[0], sum_x = 0;
  for (int i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_x += x[i];
  }
  const float range = high - low;
  float best_d = range / 15.0f, best_m = low, best = std::numeric_limits<float>::max();
  for (int c = -3; range > 0 && c <= 7; ++c) {
    const float factor = (15.0f + 0.25f * static_cast<float>(c)) / range;
    float sum_q = 0, sum_qq = 0, sum_qx = 0;
    float q[n];
    for (int i = 0; i < n; ++i) {
      q[i] = std::min(15.0f, static_cast<float>(static_cast<int>((x[i] - low) * factor + 0.5f)));
      sum_q += q[i];
      sum_qq += q[i] * q[i];
      sum_qx += q[i] * x[i];
    }
    const float determinant = n * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) continue;
    const float d = (n * sum_qx - sum_q * sum_x) / determinant, m = (sum_x - d * sum_q) / n;
    float error = 0;
    for (int i = 0; i < n; ++i) {
      const float e = d * q[i] + m - x[i];
      error += e * e;
    }
    if (d > 0 && error < best) {
      best = error;
      best_d = d;
      best_m = m;
    }
  }
  scale = to_f16(best_d);
  minimum = to_f16(best_m);
  const float d = from_f16(scale), m = from_f16(minimum);
  for (int i = 0; i < n; ++i)
    levels[i] = d > 0 ? static_cast<std::uint8_t>(std::clamp(std::nearbyint((x[i] - m) / d), 0.0f, 15.0f)) : 0;
}

void put_levels(Format format, std::uint8_t* block, std::size_t column, std::uint16_t scale, std::uint16_t minimum,
                const std::uint8_t* levels) {
  std::memcpy(block + column * 2, &scale, 2);
  if (format == Format::q4) std::memcpy(block + 2 * kTile + column * 2, &minimum, 2);
  std::uint8_t* w = block + (format == Format::q4 ? 4 : 2) * kTile + column * 4;
  for (int p = 0; p < 4; ++p)
    for (int i = 0; i < 4; ++i)
      w[p * 4 * kTile + i] = static_cast<std::uint8_t>(levels[8 * p + i] | levels[8 * p + 4 + i] << 4);
}

void put_q4(const float* x, std::size_t n, std::size_t output, std::uint8_t* out, std::size_t inputs) {
  std::uint8_t* panel = out + output / kTile * panel_bytes(Format::q4, inputs, kQ4Block);
  for (std::size_t b = 0; b < n; b += kQ4Block, panel += kQ4BlockBytes) {
    float part[kQ4Block] = {};
    std::copy(x + b, x + std::min(b + kQ4Block, n), part);
    std::uint16_t scale, minimum;
    std::uint8_t levels[kQ4Block];
    fit_q4(part, scale, minimum, levels);
    put_levels(Format::q4, panel, output % kTile, scale, minimum, levels);
  }
}

}  // namespace

void pack_nothing(Format format, std::uint8_t* out, std::size_t outputs, std::size_t inputs, std::size_t block) {
  const std::size_t panel = panel_bytes(format, inputs, block);
  std::memset(out, 0, panel * (outputs / kTile));
  if (format != Format::q8) return;
  for (std::size_t p = 0; p < outputs / kTile; ++p)
    for (std::size_t b = 0; b < inputs / block; ++b) {
      const std::size_t part = kTile * sizeof(float) + block * kTile;
      std::memset(out + p * panel + b * part + kTile * sizeof(float), 128, block * kTile);
    }
}

void pack_rows(Format format, const float* rows, std::size_t count, std::size_t columns, const std::int32_t* to,
               std::uint8_t* out, std::size_t inputs, std::size_t block, int threads) {
  in_parallel(count, kTile, threads, [&](std::size_t i) {
    const float* x = rows + i * columns;
    switch (format) {
      case Format::f32: put_f32(x, columns, to[i], out, inputs); break;
      case Format::q8: put_q8(x, columns, to[i], out, inputs, block); break;
      case Format::q4: put_q4(x, columns, to[i], out, inputs); break;
      case Format::q4_0: break;  // made of blocks alone
    }
  });
}

void pack_q4_blocks(Format format, bool has_minimum, const std::uint8_t* rows, std::size_t count, std::size_t inputs,
                    const std::int32_t* to, std::uint8_t* out, int threads) {
  const std::size_t bytes = has_minimum ? 20 : 18, head = bytes - 16;
  const std::size_t block_bytes = format == Format::q4 ? kQ4BlockBytes : kQ40BlockBytes;
  in_parallel(count, kTile, threads, [&](std::size_t r) {
    std::uint8_t* panel = out + to[r] / kTile * panel_bytes(format, inputs, kQ4Block);
    const std::uint8_t* x = rows + r * (inputs / kQ4Block) * bytes;
    for (std::size_t b = 0; b < inputs / kQ4Block; ++b, panel += block_bytes, x += bytes) {
      std::uint16_t scale, minimum = 0;
      std::memcpy(&scale, x, 2);
      if (has_minimum)
        std::memcpy(&minimum, x + 2, 2);
      else
        minimum = to_f16(-8.0f * from_f16(scale));  // a power of two: exact
      std::uint8_t levels[kQ4Block];
      for (int i = 0; i < 16; ++i) {
        levels[i] = x[head + i] & 15;
        levels[16 + i] = x[head + i] >> 4;
      }
      put_levels(format, panel, to[r] % kTile, scale, minimum, levels);
    }
  });
}

std::uint64_t checksum(const std::uint8_t* bytes, std::size_t size, int threads) {
  constexpr std::size_t kPart = 1 << 20;
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio: multiplication spreads every bit upwards
  const std::size_t parts = (size + kPart - 1) / kPart;
  std::vector<std::uint64_t> sums(parts);
  in_parallel(parts, 1, threads, [&](std::size_t p) {
    const std::uint8_t *at = bytes + p * kPart, *end = bytes + std::min(size, (p + 1) * kPart);
    std::uint64_t lanes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (; end - at >= 64; at += 64)
      for (int i = 0; i < 8; ++i) {
        std::uint64_t word;
        std::memcpy(&word, at + i * 8, 8);
        lanes[i] = (lanes[i] ^ word) * kOdd;
        lanes[i] ^= lanes[i] >> 29;
      }
    std::uint64_t h = size;
    for (; at < end; ++at) h = (h ^ *at) * kOdd;
    for (const std::uint64_t lane : lanes) h = (h ^ lane ^ (h >> 32)) * kOdd;
    sums[p] = h;
  });
  std::uint64_t h = size;
  for (const std::uint64_t part : sums) h = ((h ^ part) * kOdd) ^ (h >> 31);
  return h;
}

}  // namespace farthing
