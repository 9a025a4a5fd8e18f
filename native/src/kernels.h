// The contract between the forward pass and the files that are compiled once per instruction set.
//
// Everything here is plain data and function pointers, so that no inline function compiled for a wide instruction set
// can end up being the linker's choice for a narrow one. Layouts are explained in docs/decisions/0007-native-core.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace farthing {

// Outputs of a panel of weights, keys of a KV block, dimensions of a step over values: the width of every tile.
constexpr int kTile = 32;
// Rows the tallest tile has: as many as a register of AMX.
constexpr int kRowsMax = 16;
// Inputs that share a scale in 4-bit weights.
constexpr int kQ4Block = 32;
// Bytes of one 4-bit block of a panel: 32 scales and 32 minima in f16, then 32 x 32 nibbles.
constexpr int kQ4BlockBytes = 2 * kTile * 2 + kTile * kQ4Block / 2;
// Without minima: levels stand for -8 to 7 scales, as in GGUF's Q4_0.
constexpr int kQ40BlockBytes = kTile * 2 + kTile * kQ4Block / 2;

// Bytes ahead that a single tile asks for in its own panel, since the processor's own prefetch stops at each page.
constexpr int kWeightsAhead = 4096;

enum class Format : int { f32 = 0, q8 = 1, q4 = 2, q4_0 = 3 };
enum class KvFormat : int { f32 = 0, bf16 = 1, int8 = 2 };
enum class Gate : int { silu = 0, gelu_tanh = 1 };

// Bytes of a panel (32 outputs) of a matrix with so many inputs (a multiple of `block`).
constexpr std::size_t panel_bytes(Format format, std::size_t inputs, std::size_t block) {
  switch (format) {
    case Format::f32: return inputs * kTile * sizeof(float);
    case Format::q8: return inputs / block * (kTile * sizeof(float)) + inputs * kTile;
    case Format::q4: return inputs / kQ4Block * kQ4BlockBytes;
    case Format::q4_0: return inputs / kQ4Block * kQ40BlockBytes;
  }
  return 0;
}

// Rows of activations as the tile kernels read them: tiles of up to kRowsMax rows, inside a tile [inputs/unit][rows][unit]
// signed bytes (or [inputs][rows] floats), so that one pointer and constant offsets reach every row. Units are an
// instruction set's own (`Kernels::unit`); inputs are padded to whole ones, and from `Kernels::rows_whole` on, rows to
// kRowsMax.
struct ActivationTile {
  const void* values;
  const float* scales;           // [inputs/part][rows]
  const std::int32_t* offsets;   // [inputs/part][rows]: -128 x sum of the part's values, what u8 = w + 128 owes
  const float* sums;             // [inputs/32][rows]: sums of values, for the minima of 4-bit weights
  const std::int32_t* owed;      // [inputs/32][rows]: -8 x these, what 4-bit levels without minima owe
};

struct LinearArgs {
  const std::uint8_t* weights;   // one panel
  ActivationTile in;
  int rows;                      // 1..rows_max of the format
  int inputs;                    // multiple of block
  int block;                     // inputs that share a weight scale in q8; multiple of part
  int part;                      // inputs that share an activation scale; multiple of 32
  float* out;                    // [rows][stride], 32 columns of it
  std::ptrdiff_t stride;
  bool adds = false;             // to what is there
  // What this core will read next: while a step over inputs (4 of them, in q4 8) is computed, so many bytes of it are
  // asked for, into the second level: the first has too few buffers for misses to keep memory busy.
  const std::uint8_t* ahead = nullptr;
  int ahead_step = 0;
};

// Where a row of activations, or some of its inputs from one on, is written to inside its tile.
struct ActivationRow {
  void* values;                  // of the row's first input
  int from;                      // of `values`; everything below is already there
  float* scales;
  std::int32_t* offsets;
  float* sums;
  std::int32_t* owed;
  int rows;                      // rows of the tile: the stride of everything above
};

struct AttendArgs {
  const void* query;             // bf16: [size/2][rows] pairs; f32: [size][rows] floats; int8: as quantise_query has it
  const float* query_scales;     // int8: [rows]
  const std::int32_t* query_offsets;  // int8: [rows], -128 x sum
  int rows;                      // 1..rows_attend
  int size;                      // padded head size, multiple of 32
  const std::uint8_t* pool;      // first byte of this layer's and head's part of block 0
  std::size_t block_stride;      // bytes from block to block
  const std::int32_t* blocks;    // block table
  const std::uint8_t* next[2];   // blocks of keys that will be wanted after these, or any other memory
  const std::int32_t* first;     // [rows] first key a row sees
  const std::int32_t* last;      // [rows] last key a row sees: its own position
  float soft_cap;                // 0: none
  float scale;                   // score -> natural logits (queries are not scaled)
  float* const* out;             // [rows] -> size floats each
  float* scratch;                // rows_max * size floats
};

struct Kernels {
  const char* name;
  int unit;                      // inputs of a row that lie side by side in a tile of signed bytes
  int rows_whole;                // tiles of so many rows of 8-bit layers have places for kRowsMax, whatever they have
  int rows_attend;               // of the tallest tile of attention
  int rows_max[4];               // by Format: of the tallest tile of a linear layer,
  int rows_few[4], rows_many[4]; // and of those that it is best cut into, when rows are few or many
  int rows_own;                  // so many for each thread: then each takes its own through whole layers
  int ahead_few;                 // kWeightsAhead for tiles of one or two rows
  bool asks_keys;                // 4-bit layers of several tiles compute for longer than memory needs: it may bring keys meanwhile
  bool is_wide;                  // activations of 8-bit layers have 16 bits, in places of the kernels' own

  // What a thread does before it calls others of these, and when it leaves them for others' work.
  void (*begin)();
  void (*end)();

  // A panel times so many tiles of rows, one after another.
  void (*linear)(Format, const LinearArgs* tiles, int count);

  // y = x / rms(x) * weight; y may be x
  void (*rms_norm)(const float* x, const float* weight, int size, int mean_size, float epsilon, float* y);
  // to signed bytes with a scale for each `part` inputs; `inputs` is a multiple of part
  void (*quantise)(const float* x, int inputs, int part, const ActivationRow& row);
  // the same to 16 bits, for 8-bit layers where the kernels are wide
  void (*quantise_wide)(const float* x, int inputs, int part, const ActivationRow& row);
  // whichever of the two `attend` wants for queries over int8 keys
  void (*quantise_query)(const float* x, int inputs, int part, const ActivationRow& row);
  void (*add)(const float* x, int size, float* y);                    // y += x
  void (*scale)(float factor, int size, float* y);                    // y *= factor
  // panel columns: 16 gates then 16 ups; h gets 16 values
  void (*gate)(Gate, const float* panel, float* h);
  void (*soft_cap)(float cap, std::ptrdiff_t size, float* y);
  // rotate pairs (i, i + pairs) of one head; cosines then sines
  void (*rotate)(float* head, const float* cosines, const float* sines, int pairs);
  void (*expand_f16)(const std::uint16_t* x, int size, float factor, float* y);

  // sum of exp((x - highest) * factor): the softmax's denominator
  double (*exp_sum)(const float* x, std::ptrdiff_t size, float highest, float factor);

  // The numbers of x[begin, size) above `border` and their places, in order, until there is no room for another vector in
  // `most` (64 or more); returns where to go on. What is no number is not above.
  std::ptrdiff_t (*collect)(const float* x, std::ptrdiff_t begin, std::ptrdiff_t size, float border, int most, float* values,
                            std::int32_t* places, int* found);

  // Where in 32 numbers the first of the largest is, if it is above *best, or the first that is no number; -1 if neither.
  // Sets *best to it. Once *best is no number, nothing is above it. Only the first `count` are looked at.
  int (*above)(const float* x, int count, float* best);

  // pairs of bf16, `stride` bytes from pair to pair
  void (*to_bf16)(const float* x, int size, std::ptrdiff_t stride, std::uint8_t* out);
  // one token of one head into its place in a block
  void (*write_kv)(KvFormat, const float* key, const float* value, int size, std::uint8_t* head, int slot);
  void (*attend)(KvFormat, const AttendArgs&);

  std::uint64_t (*read)(const std::uint8_t* bytes, std::size_t size);  // touches every byte: the bandwidth probe
  std::int64_t (*operations)(long rounds);  // dot products of bytes, in registers only: the rate probe
  long operations_a_round;
};

// Asks for cache lines that will soon be written, and that another core has read or written: fetched one by one as
// stores retire, they would cost a tenth of a microsecond each.
inline void will_write(void* p, std::size_t bytes) {
#if defined(__x86_64__)
  for (std::size_t i = 0; i < bytes; i += 64) asm volatile("prefetchw %0" : : "m"(static_cast<char*>(p)[i]));
#else
  for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<char*>(p) + i, 1);
#endif
}

// Bytes of one head's keys and values in a KV block; keys first.
constexpr std::size_t kv_head_bytes(KvFormat format, std::size_t size) {
  switch (format) {
    case KvFormat::f32: return 2 * kTile * size * 4;
    case KvFormat::bf16: return 2 * kTile * size * 2;
    case KvFormat::int8: return 2 * kTile * size + 2 * kTile * sizeof(float);
  }
  return 0;
}

const Kernels* kernels_plain();
#if defined(__x86_64__)
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512vnni_bf16();
const Kernels* kernels_amx();
#endif

// The best the processor has, or what FARTHING_ISA names; throws std::runtime_error when it cannot be had.
const Kernels& kernels();

}  // namespace farthing
