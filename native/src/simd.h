// A vector of floats and one of integers in the width of the instruction set this file is compiled for.
//
// GCC's vector types do the arithmetic; the few things they cannot say (fused multiply-add, dot products of bytes and
// of bf16 pairs, f16) are functions here. Included by kernels.inc only, inside that file's anonymous namespace.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BW__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int NV = 32 / W;  // vectors a tile is wide

typedef float vf __attribute__((vector_size(4 * W)));
typedef std::int32_t vi __attribute__((vector_size(4 * W)));
typedef std::uint32_t vu __attribute__((vector_size(4 * W)));
#define INLINE inline __attribute__((always_inline))

INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
INLINE vi loadi(const void* p) { vi v; std::memcpy(&v, p, sizeof v); return v; }
INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
INLINE void storei(void* p, vi v) { std::memcpy(p, &v, sizeof v); }

// Asks for memory that will be read soon; may point past the end of what there is.
INLINE void soon(const void* p) { __builtin_prefetch(p, 0, 2); }

INLINE vf all(float x) {
#if defined(__AVX512BW__)
  return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (vf)_mm256_set1_ps(x);
#else
  return vf{x, x, x, x};
#endif
}
INLINE vi alli(std::int32_t x) {
#if defined(__AVX512BW__)
  return (vi)_mm512_set1_epi32(x);
#elif defined(__AVX2__)
  return (vi)_mm256_set1_epi32(x);
#else
  return vi{x, x, x, x};
#endif
}
INLINE vi alli_at(const void* p) { std::int32_t x; std::memcpy(&x, p, 4); return alli(x); }

INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512BW__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
// The second operand where one is not a number.
INLINE vf max(vf a, vf b) {
#if defined(__AVX512BW__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
INLINE vf min(vf a, vf b) {
#if defined(__AVX512BW__)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
// Whether a lane of `a` is above `b`, or no number.
INLINE bool any_above(vf a, vf b) {
#if defined(__AVX512BW__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLE_UQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLE_UQ)) != 0;
#else
  return !(a[0] <= b[0]) || !(a[1] <= b[1]) || !(a[2] <= b[2]) || !(a[3] <= b[3]);
#endif
}
INLINE vf abs(vf a) { return (vf)((vi)a & alli(0x7fffffff)); }
INLINE vf to_float(vi a) { return __builtin_convertvector(a, vf); }

// To the nearest integer, ties to even; for |a| < 2^22.
INLINE vi to_int(vf a) {
#if defined(__AVX512BW__)
  return (vi)_mm512_cvtps_epi32((__m512)a);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)a);
#else
  const vf magic = all(12582912.0f);
  return (vi)(a + magic) - (vi)magic;
#endif
}

// Sum of all lanes in one fixed order.
INLINE float sum(vf a) {
  float lanes[W];
  store(lanes, a);
  for (int n = W / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}
INLINE float top(vf a) {
#if defined(__AVX512BW__)
  return _mm512_reduce_max_ps((__m512)a);
#elif defined(__AVX2__)
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float lanes[W];
  store(lanes, a);
  for (int n = W / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
  return lanes[0];
#endif
}

// Sum of all lanes, whatever wraps.
INLINE std::uint32_t sum_of(vu a) {
  std::uint32_t total = 0;
  for (int i = 0; i < W; ++i) total += a[i];
  return total;
}

#if defined(__AVX512BW__)
// The largest of each of up to 16 vectors, the one of x[i] in lane i (lanes from N on repeat others): one tree for all.
template <int N>
INLINE vf tops(const vf (&x)[N]) {
  const auto at = [&](int i) __attribute__((always_inline)) { return (__m512)x[i < N ? i : N - 1]; };
  const auto four = [&](int i) __attribute__((always_inline)) {
    const __m512 a = at(i), b = at(i + 1), c = at(i + 2), d = at(i + 3);
    const __m512d ab = (__m512d)_mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512d cd = (__m512d)_mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    return _mm512_max_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd));
  };
  const auto join = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  const __m512 first = four(0), second = N > 4 ? four(4) : first;
  const __m512 low = join(first, second);
  if constexpr (N <= 8) return (vf)join(low, low);
  const __m512 third = four(8), fourth = N > 12 ? four(12) : third;
  return (vf)join(low, join(third, fourth));
}
#elif defined(__AVX2__)
// The same of up to 8.
template <int N>
INLINE vf tops(const vf (&x)[N]) {
  const auto four = [&](int i) __attribute__((always_inline)) {
    const auto at = [&](int j) __attribute__((always_inline)) { return (__m256)x[i + j < N ? i + j : N - 1]; };
    const __m256 a = at(0), b = at(1), c = at(2), d = at(3);
    const __m256d ab = (__m256d)_mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256d cd = (__m256d)_mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    return _mm256_max_ps((__m256)_mm256_unpacklo_pd(ab, cd), (__m256)_mm256_unpackhi_pd(ab, cd));
  };
  const __m256 first = four(0), second = N > 4 ? four(4) : first;
  return (vf)_mm256_max_ps(_mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31));
}
#endif

INLINE vf f16_at(const std::uint16_t* p) {
#if defined(__AVX512BW__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vf r;
  for (int i = 0; i < W; ++i) {
    const std::uint32_t sign = (std::uint32_t)(p[i] & 0x8000) << 16, rest = p[i] & 0x7fff;
    std::uint32_t bits;
    if (rest >= 0x7c00) {
      bits = 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
      bits = (rest << 13) + 0x38000000;
    } else {
      const float small = (float)rest * 5.9604644775390625e-08f;  // 2^-24
      std::memcpy(&bits, &small, 4);
    }
    bits |= sign;
    float x;
    std::memcpy(&x, &bits, 4);
    r[i] = x;
  }
  return r;
#endif
}

// e^x to about one unit in the last place; 0 below -87.3, and above 88 no more than e^88.
// r = x - n ln 2 in two parts (Cody and Waite), then 1 + r + r^2 P(r), P of degree 4
// fitted on |r| < ln 2 / 2 by Lawson's iteration (relative error 3e-9 before rounding).
INLINE vf exp(vf x) {
  const vf low = all(-87.33654f), x_low = max(x, low);
  const vf y = min(x_low, all(88.0f));
  const vi n = to_int(y * all(1.44269504088896341f));
  const vf nf = to_float(n);
  vf r = fma(nf, all(-0.693359375f), y);
  r = fma(nf, all(2.12194440e-4f), r);
  vf p = all(0.00138145394f);
  p = fma(p, r, all(0.00836874545f));
  p = fma(p, r, all(0.041668389f));
  p = fma(p, r, all(0.166665211f));
  p = fma(p, r, all(0.49999994f));
  p = fma(p, r * r, r) + all(1.0f);
  const vf result = (vf)((vi)p + (n << 23));
  return (vf)((vi)result & ~(vi)(x < low));
}

// 2^x with a relative error below 2e-7, 1 at 0; 0 from -150 down (-126 without AVX-512), and above 127 no less than 2^126.
// x = n + r, n whole; 1 + r Q(r), Q of degree 4 fitted on |r| <= 1/2 as above. Half the operations of `exp`.
INLINE vf exp2(vf x) {
#if defined(__AVX512BW__)
  const vf r = (vf)_mm512_reduce_ps((__m512)x, 0);
#else
  const vf y = min(max(x, all(-126.0f)), all(126.0f));
  const vi n = to_int(y);
  const vf r = y - to_float(n);
#endif
  vf p = all(0.001326472731307149f);
  p = fma(p, r, all(0.009671512991189957f));
  p = fma(p, r, all(0.05550733581185341f));
  p = fma(p, r, all(0.24022242426872253f));
  p = fma(p, r, all(0.6931470036506653f));
  p = fma(p, r, all(1.0f));
#if defined(__AVX512BW__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)(x - r));
#else
  return (vf)((vi)((vf)((vi)p + (n << 23))) & ~(vi)(x < all(-126.0f)));
#endif
}

constexpr float kLog2E = 1.44269504088896341f;

INLINE vf sigmoid(vf x) { return all(1.0f) / (all(1.0f) + exp2(x * all(-kLog2E))); }
INLINE vf tanh(vf x) { return all(1.0f) - all(2.0f) / (exp(x + x) + all(1.0f)); }

INLINE vi multiply_add(vi a, vi b) {  // pairs of signed 16-bit numbers
#if defined(__AVX512BW__)
  return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Dot products of 4 unsigned bytes of one operand and 4 signed ones of the other in each lane, exact in 32 bits: of bytes where
// there is an instruction for it, else in two parts, even bytes and odd bytes as pairs of 16-bit numbers. Then the operand
// that is the same for all lanes is kept as such pairs, 8 bytes for 4 numbers, which may as well have 16 bits.
#if defined(__AVX512VNNI__)
constexpr int kDotParts = 1, kQuadBytes = 4, kQuadLimit = 127, kUnsignedLimit = 255;
template <int> INLINE vi unsigned_part(vi w) { return w; }
template <int> INLINE vi signed_part(vi a) { return a; }
INLINE vi dot(vi acc, vi unsigned_bytes, vi signed_bytes) {
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}
#else
constexpr int kDotParts = 2, kQuadBytes = 8, kQuadLimit = 32767, kUnsignedLimit = 32767;
typedef std::int16_t vh __attribute__((vector_size(4 * W)));
typedef std::uint16_t vhu __attribute__((vector_size(4 * W)));
template <int Part> INLINE vi unsigned_part(vi w) { return Part ? (vi)((vhu)w >> 8) : w & alli(0x00ff00ff); }
template <int Part> INLINE vi signed_part(vi a) { return Part ? (vi)((vh)a >> 8) : (vi)((vh)((vhu)a << 8) >> 8); }
INLINE vi dot(vi acc, vi a, vi b) { return acc + multiply_add(a, b); }

// Sums of two products of an unsigned and a signed byte, in 16 bits; the caller knows that they fit.
INLINE vi multiply_add_bytes(vi a, vi b) {
#if defined(__AVX512BW__)
  return (vi)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vi)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
  return (vi)((vh)unsigned_part<0>(a) * (vh)signed_part<0>(b) + (vh)unsigned_part<1>(a) * (vh)signed_part<1>(b));
#endif
}
INLINE vi add_halves(vi a, vi b) { return (vi)((vhu)a + (vhu)b); }

// 2 W numbers of 16 bits as pairs of every four: first and third, second and fourth.
INLINE vi fours_of(vi first, vi second) {
#if defined(__AVX512BW__)
  const __m512i packed = _mm512_packs_epi32((__m512i)first, (__m512i)second);
  const __m512i pairs = _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(packed, 0xd8), 0xd8);
  return (vi)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), pairs);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packs_epi32((__m256i)first, (__m256i)second);
  const __m256i pairs = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(packed, 0xd8), 0xd8);
  return (vi)_mm256_permute4x64_epi64(pairs, 0xd8);
#else
  const vi a = first & alli(0xffff), b = second & alli(0xffff);
  return vi{a[0] | a[2] << 16, a[1] | a[3] << 16, b[0] | b[2] << 16, b[1] | b[3] << 16};
#endif
}
#endif

// acc += a.low * b.low + a.high * b.high, pairs of bf16 in each lane.
INLINE vf dot_bf16(vf acc, vi a, vi b) {
#if defined(__AVX512BF16__)
  return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const vi high = alli((std::int32_t)0xffff0000);
  acc = fma((vf)(a & high), (vf)(b & high), acc);
  return fma((vf)(a << 16), (vf)(b << 16), acc);
#endif
}

// Finite numbers to bf16 in the low half of each lane, ties to even.
INLINE vu round_bf16(vf x) {
  const vu u = (vu)x;
  return (u + (u >> 16 & 1) + 0x7fff) >> 16;
}

// 2 W whole numbers, 0 to kUnsignedLimit, as `dot` wants what is the same for all lanes.
INLINE void store_quads(std::uint32_t* p, vi first, vi second) {
#if defined(__AVX512VNNI__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)first));
  _mm_storeu_si128((__m128i*)(p + W / 4), _mm512_cvtepi32_epi8((__m512i)second));
#else
  storei(p, fours_of(first, second));
#endif
}

// 2 W floats to W pairs in order.
INLINE void store_pairs(std::uint32_t* p, const vf* x) {
#if defined(__AVX512BF16__)
  const __m512bh y = _mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]);
  std::memcpy(p, &y, sizeof y);
#else
  std::uint32_t lanes[2 * W];
  const vu low = round_bf16(x[0]), high = round_bf16(x[1]);
  std::memcpy(lanes, &low, sizeof low);
  std::memcpy(lanes + W, &high, sizeof high);
  for (int i = 0; i < W; ++i) p[i] = lanes[2 * i] | lanes[2 * i + 1] << 16;
#endif
}

}  // namespace
