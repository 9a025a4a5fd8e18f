// What two threads of this machine can do now: bytes read a second from far more memory than caches hold, and 8-bit
// multiplications and additions a second from registers alone: of bytes where the processor has dot products of them, else
// of bytes widened to pairs of 16 bits, which is what is exact. Prints both; 0 where it has neither.
// cc -O2 -march=native -pthread probe.c -o probe && ./probe THREADS

#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { kThreadsMax = 64, kTries = 5 };
static const size_t kBytes = (size_t)256 << 20;  // for each thread
static const long kRounds = 6 * 1000 * 1000;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint8_t* memory[kThreadsMax];
static volatile uint64_t sink;
static pthread_barrier_t together;
static double began[kThreadsMax], ended[kThreadsMax];

static void read_all(const uint8_t* bytes) {
#ifdef __AVX2__
  __m256i sums[8];
  memset(sums, 0, sizeof sums);
  for (size_t i = 0; i < kBytes; i += sizeof sums) {
    const __m256i* at = (const __m256i*)(bytes + i);
    sums[0] = _mm256_xor_si256(sums[0], _mm256_load_si256(at));
    sums[1] = _mm256_xor_si256(sums[1], _mm256_load_si256(at + 1));
    sums[2] = _mm256_xor_si256(sums[2], _mm256_load_si256(at + 2));
    sums[3] = _mm256_xor_si256(sums[3], _mm256_load_si256(at + 3));
    sums[4] = _mm256_xor_si256(sums[4], _mm256_load_si256(at + 4));
    sums[5] = _mm256_xor_si256(sums[5], _mm256_load_si256(at + 5));
    sums[6] = _mm256_xor_si256(sums[6], _mm256_load_si256(at + 6));
    sums[7] = _mm256_xor_si256(sums[7], _mm256_load_si256(at + 7));
  }
  uint64_t words[sizeof sums / 8];
  memcpy(words, sums, sizeof words);
  for (size_t i = 0; i < sizeof words / 8; ++i) sink ^= words[i];
#else
  uint64_t sum = 0;
  for (size_t i = 0; i < kBytes; i += 8) sum ^= *(const uint64_t*)(bytes + i);
  sink ^= sum;
#endif
}

#if defined(__AVX512VNNI__)
static const double kProducts = 12 * 64;  // of a round
#elif defined(__AVX2__)
static const double kProducts = 12 * 16;
#else
static const double kProducts = 0;
#endif

static void multiply(void) {
#if defined(__AVX512VNNI__)
  __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x05060708);
  __m512i c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a, c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;
  for (long i = 0; i < kRounds; ++i) {
    // One instruction each, named so that no compiler may merge, move or spill them.
#define DOT(c) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b))
    DOT(c0); DOT(c1); DOT(c2); DOT(c3); DOT(c4); DOT(c5); DOT(c6); DOT(c7); DOT(c8); DOT(c9); DOT(c10); DOT(c11);
  }
#elif defined(__AVX2__)
  __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(5);
  __m256i c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a, c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;
  for (long i = 0; i < kRounds; ++i) {
#define DOT(c) __asm__ volatile("vpmaddwd %2, %1, %%ymm15\n vpaddd %%ymm15, %0, %0" : "+x"(c) : "x"(a), "x"(b) : "xmm15")
    DOT(c0); DOT(c1); DOT(c2); DOT(c3); DOT(c4); DOT(c5); DOT(c6); DOT(c7); DOT(c8); DOT(c9); DOT(c10); DOT(c11);
  }
#endif
}

static void* work(void* argument) {
  const long me = (long)argument;
  for (int kind = 0; kind < 2; ++kind)
    for (int t = 0; t < kTries; ++t) {
      pthread_barrier_wait(&together);
      began[me] = now();
      kind ? multiply() : read_all(memory[me]);
      ended[me] = now();
      pthread_barrier_wait(&together);
      pthread_barrier_wait(&together);
    }
  return NULL;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 2;
  if (threads < 1 || threads > kThreadsMax) return 2;
  pthread_barrier_init(&together, NULL, (unsigned)threads + 1);
  pthread_t ids[kThreadsMax];
  for (long t = 0; t < threads; ++t) {
    void* got = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) return 1;
    madvise(got, kBytes, MADV_HUGEPAGE);
    memory[t] = memset(got, 1, kBytes);
    pthread_create(&ids[t], NULL, work, (void*)t);
  }
  double best[2] = {0, 0};
  for (int kind = 0; kind < 2; ++kind)
    for (int t = 0; t < kTries; ++t) {
      pthread_barrier_wait(&together);
      pthread_barrier_wait(&together);
      double from = began[0], to = ended[0];
      for (int i = 1; i < threads; ++i) {
        if (began[i] < from) from = began[i];
        if (ended[i] > to) to = ended[i];
      }
      const double amount = kind ? kProducts * 2 * (double)kRounds * threads : (double)kBytes * threads;
      if (amount / (to - from) > best[kind]) best[kind] = amount / (to - from);
      pthread_barrier_wait(&together);
    }
  for (int t = 0; t < threads; ++t) pthread_join(ids[t], NULL);
  printf("%.6g %.6g\n", best[0], best[1]);
  return 0;
}
