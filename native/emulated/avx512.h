// The instructions of AVX-512 (F, BW, VL, DQ, VNNI, BF16) and AMX that the kernels use, in plain C++: it proves on any
// x86 processor with AVX2 what kernels for others compute (`make emulate`). How fast they are is proved on those only.
//
// Included before everything else in a kernel's file (-include) with FARTHING_EMULATED as 1 (AVX-512), 2 (and VNNI),
// 3 (and BF16) or 4 (and AMX); defines the macros by which a compiler tells what it has. Semantics are those of "Intel 64
// and IA-32 Architectures Software Developer's Manual", volume 2, operation by operation; a lane of a vector is its index.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace emulated {

typedef std::int16_t Words __attribute__((vector_size(64)));
typedef std::int32_t Integers __attribute__((vector_size(64)));
typedef std::uint32_t Naturals __attribute__((vector_size(64)));
typedef std::int64_t Quads __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
static_assert(sizeof(__m512i) == 64 && sizeof(__m512) == 64);

#define EMULATED inline __attribute__((always_inline))

// A vector of `To` whose lanes are f(lane); it turns into any type of a register.
template <typename To>
struct Gathered {
  To lanes[64 / sizeof(To)];
  template <typename V>
  EMULATED explicit operator V() const {
    static_assert(sizeof(V) == 64);
    V v;
    std::memcpy(&v, lanes, sizeof v);
    return v;
  }
};
template <typename To, typename F>
EMULATED Gathered<To> each(F f) {
  Gathered<To> found;
  for (int i = 0; i < int(64 / sizeof(To)); ++i) found.lanes[i] = static_cast<To>(f(i));
  return found;
}
template <typename T, typename V>
EMULATED void spread(T (&lanes)[64 / sizeof(T)], const V& v) { std::memcpy(lanes, &v, sizeof v); }
template <typename To, typename From>
constexpr To saturated(From x) {
  return static_cast<To>(std::clamp<From>(x, std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
}

// ---- all lanes alike ----------------------------------------------------------------------------------------------

EMULATED __m512 set1_ps(float x) { return (__m512)(Floats{} + x); }
EMULATED __m512i set1_epi32(int x) { return (__m512i)(Integers{} + x); }
EMULATED __m512i set1_epi16(short x) { return (__m512i)each<std::int16_t>([&](int) { return x; }); }
EMULATED __m512i set1_epi8(char x) { return (__m512i)each<std::int8_t>([&](int) { return x; }); }
EMULATED __m512i setzero_si512() { return __m512i{}; }

template <typename... T>
EMULATED __m512i setr_epi32(T... x) { return (__m512i)Integers{x...}; }
EMULATED __m512i set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f, int e, int d, int c, int b, int a) {
  return setr_epi32(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);
}
EMULATED __m512i setr_epi64(long long a, long long b, long long c, long long d, long long e, long long f, long long g, long long h) {
  return (__m512i)Quads{a, b, c, d, e, f, g, h};
}

// ---- memory -------------------------------------------------------------------------------------------------------

EMULATED __m512 loadu_ps(const void* p) { __m512 v; std::memcpy(&v, p, sizeof v); return v; }
EMULATED void storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, sizeof v); }
EMULATED void storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, sizeof v); }
EMULATED __m512 maskz_loadu_ps(unsigned mask, const void* p) {
  return (__m512)each<float>([&](int i) { return mask >> i & 1 ? static_cast<const float*>(p)[i] : 0.0f; });
}
EMULATED void mask_storeu_epi8(void* p, unsigned long long mask, __m512i v) {
  std::int8_t lanes[64];
  spread(lanes, v);
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1) static_cast<std::int8_t*>(p)[i] = lanes[i];
}

// ---- floats -------------------------------------------------------------------------------------------------------

EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
}
EMULATED __m512 max_ps(__m512 a, __m512 b) { return (__m512)((Floats)a > (Floats)b ? (Floats)a : (Floats)b); }
EMULATED __m512 min_ps(__m512 a, __m512 b) { return (__m512)((Floats)a < (Floats)b ? (Floats)a : (Floats)b); }
EMULATED float reduce_max_ps(__m512 a) {
  for (int step = 8; step; step /= 2) {
    float lanes[16];
    spread(lanes, a);
    a = max_ps(a, (__m512)each<float>([&](int i) { return lanes[(i + step) % 16]; }));
  }
  return ((Floats)a)[0];
}
EMULATED unsigned short cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  float x[16], y[16];
  spread(x, a);
  spread(y, b);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) {
    const bool holds = predicate == _CMP_NLE_UQ ? !(x[i] <= y[i]) : predicate == _CMP_GT_OQ ? x[i] > y[i] : (__builtin_trap(), false);
    mask |= unsigned(holds) << i;
  }
  return static_cast<unsigned short>(mask);
}
// To the nearest, ties to even; what 32 bits do not hold is -2^31.
EMULATED __m512i cvtps_epi32(__m512 a) {
  __m256 x[2];
  __m256i y[2];
  std::memcpy(x, &a, sizeof a);
  for (int i = 0; i < 2; ++i) y[i] = _mm256_cvtps_epi32(x[i]);
  __m512i v;
  std::memcpy(&v, y, sizeof v);
  return v;
}
EMULATED __m512 cvtph_ps(__m256i a) {
  __m128i x[2];
  __m256 y[2];
  std::memcpy(x, &a, sizeof a);
  for (int i = 0; i < 2; ++i) y[i] = _mm256_cvtph_ps(x[i]);
  __m512 v;
  std::memcpy(&v, y, sizeof v);
  return v;
}
// What is left of rounding to a whole number (that alone is what the kernels ask for); of infinities nothing.
EMULATED __m512 reduce_ps(__m512 a, int what) {
  if (what) __builtin_trap();
  float x[16];
  spread(x, a);
  return (__m512)each<float>([&](int i) { return std::isinf(x[i]) ? 0.0f : x[i] - std::nearbyint(x[i]); });
}
// a 2^floor(b); a number times 2^-infinity is nothing.
EMULATED __m512 scalef_ps(__m512 a, __m512 b) {
  float x[16], y[16];
  spread(x, a);
  spread(y, b);
  return (__m512)each<float>([&](int i) -> float {
    if (std::isnan(x[i]) || std::isnan(y[i])) return __builtin_nanf("");
    return std::ldexp(x[i], static_cast<int>(std::clamp(std::floor(y[i]), -1000.0f, 1000.0f)));
  });
}
EMULATED __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  std::uint32_t x[16], y[16];
  float z[16];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  spread(z, sum);
  const auto flushed = [](float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; };
  const auto high = [&](std::uint32_t v) { return flushed(std::bit_cast<float>(v & 0xffff0000u)); };
  const auto low = [&](std::uint32_t v) { return flushed(std::bit_cast<float>(v << 16)); };
  return (__m512)each<float>([&](int i) {
    const float first = flushed(std::fma(high(x[i]), high(y[i]), flushed(z[i])));
    return flushed(std::fma(low(x[i]), low(y[i]), first));
  });
}
// The lower half is of `low`. The kernels give it finite numbers only.
EMULATED __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
  std::uint32_t x[32];
  std::memcpy(x, &low, sizeof low);
  std::memcpy(x + 16, &high, sizeof high);
  return (__m512bh)each<std::uint16_t>([&](int i) { return (x[i] + (x[i] >> 16 & 1) + 0x7fff) >> 16; });
}

// ---- whole numbers ------------------------------------------------------------------------------------------------

EMULATED __m512i add_epi32(__m512i a, __m512i b) { return (__m512i)((Naturals)a + (Naturals)b); }
EMULATED __m512i and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i xor_si512(__m512i a, __m512i b) { return a ^ b; }
EMULATED __m512i srai_epi16(__m512i a, int by) { return (__m512i)((Words)a >> static_cast<std::int16_t>(by)); }
EMULATED __m512i sllv_epi32(__m512i a, __m512i by) {
  std::uint32_t x[16], y[16];
  spread(x, a);
  spread(y, by);
  return (__m512i)each<std::uint32_t>([&](int i) { return y[i] < 32 ? x[i] << y[i] : 0; });
}
EMULATED __m512i adds_epi16(__m512i a, __m512i b) {
  std::int16_t x[32], y[32];
  spread(x, a);
  spread(y, b);
  return (__m512i)each<std::int16_t>([&](int i) { return saturated<std::int16_t>(x[i] + y[i]); });
}
EMULATED int reduce_add_epi32(__m512i a) {
  std::uint32_t x[16], sum = 0;
  spread(x, a);
  for (std::uint32_t v : x) sum += v;
  return static_cast<int>(sum);
}
EMULATED __m512i sad_epu8(__m512i a, __m512i b) {
  std::uint8_t x[64], y[64];
  spread(x, a);
  spread(y, b);
  return (__m512i)each<std::int64_t>([&](int i) {
    int sum = 0;
    for (int j = 8 * i; j < 8 * i + 8; ++j) sum += std::abs(x[j] - y[j]);
    return sum;
  });
}
EMULATED __m512i madd_epi16(__m512i a, __m512i b) {
  std::int16_t x[32], y[32];
  spread(x, a);
  spread(y, b);
  return (__m512i)each<std::int32_t>([&](int i) {
    return static_cast<std::uint32_t>(x[2 * i] * y[2 * i]) + static_cast<std::uint32_t>(x[2 * i + 1] * y[2 * i + 1]);
  });
}
EMULATED __m512i maddubs_epi16(__m512i a, __m512i b) {
  std::uint8_t x[64];
  std::int8_t y[64];
  spread(x, a);
  spread(y, b);
  return (__m512i)each<std::int16_t>([&](int i) { return saturated<std::int16_t>(x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]); });
}
// Even bytes and odd bytes as pairs of 16 bits: exact, and quick enough for whole models.
EMULATED __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  __m256i x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &sum, sizeof sum);
  for (int i = 0; i < 2; ++i) {
    const __m256i even = _mm256_and_si256(x[i], _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(x[i], 8);
    const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(y[i], 8), 8), second = _mm256_srai_epi16(y[i], 8);
    z[i] = _mm256_add_epi32(z[i], _mm256_add_epi32(_mm256_madd_epi16(even, first), _mm256_madd_epi16(odd, second)));
  }
  std::memcpy(&sum, z, sizeof sum);
  return sum;
}

// ---- narrower, and to other places --------------------------------------------------------------------------------

// Both operands of a quarter of a register side by side, saturated to half their width.
template <typename To, typename From>
EMULATED __m512i packed(__m512i a, __m512i b) {
  constexpr int n = 16 / sizeof(From);
  From x[64 / sizeof(From)], y[64 / sizeof(From)];
  spread(x, a);
  spread(y, b);
  return (__m512i)each<To>([&](int i) {
    const int quarter = i / (2 * n), at = i % (2 * n);
    return saturated<To>(at < n ? x[quarter * n + at] : y[quarter * n + at - n]);
  });
}
EMULATED __m512i packs_epi32(__m512i a, __m512i b) { return packed<std::int16_t, std::int32_t>(a, b); }
EMULATED __m512i packs_epi16(__m512i a, __m512i b) { return packed<std::int8_t, std::int16_t>(a, b); }
EMULATED __m512i packus_epi16(__m512i a, __m512i b) { return packed<std::uint8_t, std::int16_t>(a, b); }
EMULATED __m128i cvtepi32_epi8(__m512i a) {
  std::int32_t x[16];
  std::int8_t y[16];
  spread(x, a);
  for (int i = 0; i < 16; ++i) y[i] = static_cast<std::int8_t>(x[i]);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(y));
}
EMULATED __m256i cvtepi16_epi8(__m512i a) {
  std::int16_t x[32];
  std::int8_t y[32];
  spread(x, a);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<std::int8_t>(x[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y));
}

// Halves of quarters, lower or upper, a lane of each operand in turn.
template <int Upper, typename T, typename V>
EMULATED V unpacked(V a, V b) {
  constexpr int n = 16 / sizeof(T);
  T x[64 / sizeof(T)], y[64 / sizeof(T)];
  spread(x, a);
  spread(y, b);
  return (V)each<T>([&](int i) {
    const int from = i / n * n + i % n / 2 + Upper * n / 2;
    return i % 2 ? y[from] : x[from];
  });
}
EMULATED __m512 unpacklo_ps(__m512 a, __m512 b) { return unpacked<0, float>(a, b); }
EMULATED __m512 unpackhi_ps(__m512 a, __m512 b) { return unpacked<1, float>(a, b); }
EMULATED __m512d unpacklo_pd(__m512d a, __m512d b) { return unpacked<0, std::int64_t>(a, b); }
EMULATED __m512d unpackhi_pd(__m512d a, __m512d b) { return unpacked<1, std::int64_t>(a, b); }

// Quarters of registers: two of `a`, then two of `b`.
template <typename V>
EMULATED V quarters(V a, V b, int which) {
  __m128i x[4], y[4], z[4];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  for (int i = 0; i < 4; ++i) z[i] = (i < 2 ? x : y)[which >> 2 * i & 3];
  std::memcpy(&a, z, sizeof a);
  return a;
}
EMULATED __m512 shuffle_f32x4(__m512 a, __m512 b, int which) { return quarters(a, b, which); }
EMULATED __m512i shuffle_i64x2(__m512i a, __m512i b, int which) { return quarters(a, b, which); }
EMULATED __m512i shuffle_epi32(__m512i a, int which) {
  std::int32_t x[16];
  spread(x, a);
  return (__m512i)each<std::int32_t>([&](int i) { return x[i / 4 * 4 + (which >> i % 4 * 2 & 3)]; });
}
template <int High>
EMULATED __m512i shuffled_words(__m512i a, int which) {
  std::int16_t x[32];
  spread(x, a);
  return (__m512i)each<std::int16_t>([&](int i) { return i % 8 / 4 == High ? x[i / 4 * 4 + (which >> i % 4 * 2 & 3)] : x[i]; });
}
EMULATED __m512i shufflelo_epi16(__m512i a, int which) { return shuffled_words<0>(a, which); }
EMULATED __m512i shufflehi_epi16(__m512i a, int which) { return shuffled_words<1>(a, which); }
EMULATED __m512i permutexvar_epi32(__m512i from, __m512i a) {
  std::uint32_t x[16], y[16];
  spread(x, from);
  spread(y, a);
  return (__m512i)each<std::uint32_t>([&](int i) { return y[x[i] % 16]; });
}
EMULATED __m512i permutexvar_epi64(__m512i from, __m512i a) {
  std::uint64_t x[8], y[8];
  spread(x, from);
  spread(y, a);
  return (__m512i)each<std::uint64_t>([&](int i) { return y[x[i] % 8]; });
}
template <typename V>
EMULATED V compressed(unsigned mask, V a) {
  std::int32_t x[16], y[16] = {};
  spread(x, a);
  for (int i = 0, n = 0; i < 16; ++i)
    if (mask >> i & 1) y[n++] = x[i];
  std::memcpy(&a, y, sizeof a);
  return a;
}
EMULATED __m512 maskz_compress_ps(unsigned mask, __m512 a) { return compressed(mask, a); }
EMULATED __m512i maskz_compress_epi32(unsigned mask, __m512i a) { return compressed(mask, a); }
EMULATED __m128i castsi512_si128(__m512i a) { __m128i v; std::memcpy(&v, &a, sizeof v); return v; }
EMULATED __m256i castsi512_si256(__m512i a) { __m256i v; std::memcpy(&v, &a, sizeof v); return v; }
EMULATED __m256i extracti64x4_epi64(__m512i a, int which) {
  __m256i x[2];
  std::memcpy(x, &a, sizeof a);
  return x[which];
}
EMULATED __m128i extracti32x4_epi32(__m512i a, int which) {
  __m128i x[4];
  std::memcpy(x, &a, sizeof a);
  return x[which];
}

// ---- tile registers -----------------------------------------------------------------------------------------------

struct Tiles {
  bool shaped = false;
  int rows[8], bytes[8];
  std::uint8_t data[8][16][64];
};
inline thread_local Tiles tiles;
inline void must(bool holds) { if (!holds) __builtin_trap(); }  // what a processor would refuse to do

inline void tile_loadconfig(const void* from) {
  const auto* config = static_cast<const std::uint8_t*>(from);
  must(config[0] == 1 && config[1] == 0);
  for (int i = 0; i < 8; ++i) {
    std::uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * i, sizeof bytes);
    tiles.bytes[i] = bytes;
    tiles.rows[i] = config[48 + i];
    must(tiles.bytes[i] <= 64 && tiles.rows[i] <= 16);
  }
  std::memset(tiles.data, 0, sizeof tiles.data);
  tiles.shaped = true;
}
inline void tile_release() { tiles.shaped = false; }
inline void tile_zero(int t) {
  must(tiles.shaped);
  std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
}
inline void tile_loadd(int t, const void* from, std::ptrdiff_t stride) {
  tile_zero(t);
  for (int i = 0; i < tiles.rows[t]; ++i) std::memcpy(tiles.data[t][i], static_cast<const std::uint8_t*>(from) + i * stride, tiles.bytes[t]);
}
inline void tile_stored(int t, void* to, std::ptrdiff_t stride) {
  must(tiles.shaped);
  for (int i = 0; i < tiles.rows[t]; ++i) std::memcpy(static_cast<std::uint8_t*>(to) + i * stride, tiles.data[t][i], tiles.bytes[t]);
}
// Signed bytes of `a` by unsigned ones of `b`, in fours.
inline void tile_dpbsud(int sum, int a, int b) {
  must(tiles.shaped && tiles.rows[sum] == tiles.rows[a] && tiles.bytes[a] == 4 * tiles.rows[b] && tiles.bytes[sum] == tiles.bytes[b]);
  for (int i = 0; i < tiles.rows[sum]; ++i) {
    __m512i total, bytes;
    std::memcpy(&total, tiles.data[sum][i], sizeof total);
    for (int k = 0; k < tiles.bytes[a] / 4; ++k) {
      std::int32_t four;
      std::memcpy(&four, tiles.data[a][i] + 4 * k, sizeof four);
      std::memcpy(&bytes, tiles.data[b][k], sizeof bytes);
      total = dpbusd_epi32(total, bytes, set1_epi32(four));
    }
    std::memcpy(tiles.data[sum][i], &total, tiles.bytes[sum]);
  }
}

}  // namespace emulated

// ---- under the names that kernels use --------------------------------------------------------------------------------

#undef _mm512_add_epi32
#define _mm512_add_epi32 emulated::add_epi32
#undef _mm512_adds_epi16
#define _mm512_adds_epi16 emulated::adds_epi16
#undef _mm512_and_si512
#define _mm512_and_si512 emulated::and_si512
#undef _mm512_castsi512_si128
#define _mm512_castsi512_si128 emulated::castsi512_si128
#undef _mm512_castsi512_si256
#define _mm512_castsi512_si256 emulated::castsi512_si256
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#undef _mm512_cvtepi16_epi8
#define _mm512_cvtepi16_epi8 emulated::cvtepi16_epi8
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps_pbh
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emulated::cvtph_ps
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#undef _mm512_extracti32x4_epi32
#define _mm512_extracti32x4_epi32 emulated::extracti32x4_epi32
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64 emulated::extracti64x4_epi64
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#undef _mm512_loadu_ps
#define _mm512_loadu_ps emulated::loadu_ps
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 emulated::madd_epi16
#undef _mm512_maddubs_epi16
#define _mm512_maddubs_epi16 emulated::maddubs_epi16
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8 emulated::mask_storeu_epi8
#undef _mm512_maskz_compress_epi32
#define _mm512_maskz_compress_epi32 emulated::maskz_compress_epi32
#undef _mm512_maskz_compress_ps
#define _mm512_maskz_compress_ps emulated::maskz_compress_ps
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#undef _mm512_max_ps
#define _mm512_max_ps emulated::max_ps
#undef _mm512_min_ps
#define _mm512_min_ps emulated::min_ps
#undef _mm512_packs_epi16
#define _mm512_packs_epi16 emulated::packs_epi16
#undef _mm512_packs_epi32
#define _mm512_packs_epi32 emulated::packs_epi32
#undef _mm512_packus_epi16
#define _mm512_packus_epi16 emulated::packus_epi16
#undef _mm512_permutexvar_epi32
#define _mm512_permutexvar_epi32 emulated::permutexvar_epi32
#undef _mm512_permutexvar_epi64
#define _mm512_permutexvar_epi64 emulated::permutexvar_epi64
#undef _mm512_reduce_add_epi32
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#undef _mm512_reduce_ps
#define _mm512_reduce_ps emulated::reduce_ps
#undef _mm512_sad_epu8
#define _mm512_sad_epu8 emulated::sad_epu8
#undef _mm512_scalef_ps
#define _mm512_scalef_ps emulated::scalef_ps
#undef _mm512_set1_epi16
#define _mm512_set1_epi16 emulated::set1_epi16
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 emulated::set1_epi32
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 emulated::set1_epi8
#undef _mm512_set1_ps
#define _mm512_set1_ps emulated::set1_ps
#undef _mm512_set_epi32
#define _mm512_set_epi32 emulated::set_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 emulated::setr_epi32
#undef _mm512_setr_epi64
#define _mm512_setr_epi64 emulated::setr_epi64
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 emulated::setzero_si512
#undef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32 emulated::shuffle_epi32
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#undef _mm512_shuffle_i64x2
#define _mm512_shuffle_i64x2 emulated::shuffle_i64x2
#undef _mm512_shufflehi_epi16
#define _mm512_shufflehi_epi16 emulated::shufflehi_epi16
#undef _mm512_shufflelo_epi16
#define _mm512_shufflelo_epi16 emulated::shufflelo_epi16
#undef _mm512_sllv_epi32
#define _mm512_sllv_epi32 emulated::sllv_epi32
#undef _mm512_srai_epi16
#define _mm512_srai_epi16 emulated::srai_epi16
#undef _mm512_storeu_ps
#define _mm512_storeu_ps emulated::storeu_ps
#undef _mm512_storeu_si512
#define _mm512_storeu_si512 emulated::storeu_si512
#undef _mm512_unpackhi_pd
#define _mm512_unpackhi_pd emulated::unpackhi_pd
#undef _mm512_unpackhi_ps
#define _mm512_unpackhi_ps emulated::unpackhi_ps
#undef _mm512_unpacklo_pd
#define _mm512_unpacklo_pd emulated::unpacklo_pd
#undef _mm512_unpacklo_ps
#define _mm512_unpacklo_ps emulated::unpacklo_ps
#undef _mm512_xor_si512
#define _mm512_xor_si512 emulated::xor_si512
#undef _tile_dpbsud
#define _tile_dpbsud emulated::tile_dpbsud
#undef _tile_loadconfig
#define _tile_loadconfig emulated::tile_loadconfig
#undef _tile_loadd
#define _tile_loadd emulated::tile_loadd
#undef _tile_release
#define _tile_release emulated::tile_release
#undef _tile_stored
#define _tile_stored emulated::tile_stored
#undef _tile_zero
#define _tile_zero emulated::tile_zero

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#if FARTHING_EMULATED >= 2
#define __AVX512VNNI__ 1
#endif
#if FARTHING_EMULATED >= 3
#define __AVX512BF16__ 1
#endif
#if FARTHING_EMULATED >= 4
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#endif
