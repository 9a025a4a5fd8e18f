// A decoder's weights as views on one packed buffer, its KV memory, and the pass over both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "populate.h"

namespace farthing {

// Vectors read whole cache lines: a buffer that begins 16 bytes into one, as malloc's large ones do, costs two for each.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
};
template <class T>
using Lines = std::vector<T, LineAllocator<T>>;

inline int padded(int size, int unit = kTile) { return (size + unit - 1) / unit * unit; }

// What the packed file and the pass agree on; mirrors farthing.llm.spec.DecoderSpec.
struct Config {
  int vocabulary, layers, width, heads, kv_heads, head_size, ffn_width;
  float norm_epsilon, attention_scale, attention_soft_cap, logit_soft_cap, embedding_scale;
  Gate gate;
  bool has_qkv_bias, has_qk_norm, has_post_norms;
  std::vector<std::vector<double>> rotary_frequencies;
  std::vector<double> rotary_factors;
  std::vector<int> rotary_of_layer, window_of_layer;
  Format format, head_format;
  std::unordered_map<std::string, Format> formats;  // of matrices that have another
  bool embedding_is_f32;
  // Inputs that share a scale of weights (blocks) and of activations (parts): of width, heads * head, ffn_width.
  int width_block, attention_block, ffn_block;
  int width_part, attention_part, ffn_part, head_part;
};

struct Matrix {
  Format format;
  int outputs, inputs, block;  // padded
  const std::uint8_t* data;
  std::size_t panel;           // bytes
  int steps;                   // of a panel's inputs, between which the kernels ask for memory
  int panels() const { return outputs / kTile; }
  const std::uint8_t* at(int index) const { return data + index * panel; }
};

struct Layer {
  Matrix qkv, o, gate_up, down;
  const float *attention_norm, *ffn_norm, *attention_post_norm, *ffn_post_norm;
  const float *q_norm, *k_norm, *qkv_bias;
  int rotary, window;
};

struct Weights {
  const std::uint8_t* bytes;
  std::size_t size;
  std::unordered_map<std::string, std::size_t> offsets;
};

// One sequence of a step, checked.
struct Rows {
  int count, start;
  const std::int32_t* blocks;
};

// Quantised (or plain) rows in the tile layout that the linear kernels read.
class Activations {
 public:
  void shape(const Kernels& kernels, int rows, int rows_max, int inputs, int part, Format format);
  int tiles() const { return static_cast<int>(tiles_.size()) - 1; }
  int first(int tile) const { return tiles_[tile].first; }
  int rows(int tile) const { return tiles_[tile].rows; }
  ActivationTile tile(int index) const;
  int part() const { return part_; }
  int inputs() const { return inputs_; }
  // Writes inputs [from, from + count) of a row of a tile; whole parts.
  void put(const Kernels& kernels, int tile, int row, const float* x, int from, int count);
  // Says that inputs [from, from + count) of a tile will soon be put.
  void will_put(int tile, int from, int count);

 private:
  int inputs_ = 0, part_ = 0, parts_ = 0, unit_ = 0, planes_ = 1, width_ = 0;  // width: bytes of a row (floats: their count)
  Format format_ = Format::f32;
  struct Tile {
    int first, rows, places;  // there may be places for more rows than there are
    std::size_t place;        // of the first
  };
  std::vector<Tile> tiles_ = {{0, 0, 0, 0}};  // and the end
  Lines<std::uint8_t> values_;
  Lines<float> scales_, sums_;
  Lines<std::int32_t> offsets_, owed_;
};

// The token of a row with the largest logit; the first of equals.
struct Likeliest {
  float logit;
  std::int32_t token;
};

class Model {
 public:
  Model(const Config& config, const Weights& weights, KvFormat kv, int blocks, int threads);
  ~Model();

  int blocks() const { return blocks_; }
  int threads() const { return pool_.threads(); }
  const Config& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  std::size_t kv_bytes() const { return kv_size_; }
  // Blocks that a step will not wait for the system to clear.
  std::size_t populated() const { return populator_->populated(); }

  // Arguments have been checked by the caller. `logits` is [logits_rows][vocabulary], `likeliest` [logits_rows]; either
  // may be null.
  void run(const std::int32_t* tokens, int count, const std::vector<Rows>& sequences, const std::int32_t* logits_rows,
           int logits_count, float* logits, Likeliest* likeliest);
  void copy_block(int source, int target);
  // Seconds thread 0 has spent in each phase since the last call.
  std::vector<std::pair<std::string, double>> take_profile();

 private:
  // Query rows and heads that one call of the attention kernel computes.
  struct Item {
    int sequence, row, rows, head, heads, out;  // first row of the step, first query head, first output row
  };
  // The rows that go through a stretch of the network: all of the step, or after the last attention only those whose
  // logits are wanted.
  struct Stage {
    int rows = 0;
    bool is_private = false;  // each thread quantises its rows for itself
    bool is_own = false;      // one thread's alone: all items of a phase are for it, and it waits for nobody
    int next = 0;             // item, if they are
    const std::int32_t* places = nullptr;     // of its rows, in x and in what attention puts out; consecutive in a tile
    const std::int32_t* step_rows = nullptr;  // which rows of the step they are
    float *x = nullptr, *branch = nullptr;    // [places][width]
    std::vector<Item> items;                  // of attention
    std::vector<Activations> normed, attended, final;  // one, or one a thread
    Activations down;
  };
  struct Scratch;

  void pass(int thread);
  void embed(Stage& stage);
  void items_of(Stage& stage) const;
  void shape(Stage& stage, int rows);
  void share_rows(int count);
  int take(Stage& stage) { return stage.is_own ? stage.next++ : pool_.take(); }
  void meet(Stage& stage);
  int share_of(int thread, int count) const { return count * thread / pool_.threads(); }
  int qkv_share(int thread) const;
  const Activations& normed(int thread, Stage& stage, std::vector<Activations>& to, const float* norm, const float* post);
  const Activations& attended(int thread, Stage& stage);
  template <class F>
  void by_tiles(Stage& stage, Activations& out, const F& one);
  template <class Bound, class F>
  void by_items(Stage& stage, int thread, int tiles, const Bound& bound, const F& one);
  // Keys, values and queries of a layer; and all that comes after them in it.
  void before(int thread, int index, Stage& stage);
  void after(int thread, int index, Stage& stage);
  void qkv(int thread, const Layer& layer, int index, const Activations& in, Stage& stage);
  void attend(int thread, const Layer& layer, int index, Stage& stage);
  void project(int thread, const Matrix& matrix, const Activations& in, Stage& stage);
  void feed(int thread, const Layer& layer, const Activations& in, Stage& stage);
  void head(int thread, const Activations& in);
  template <class F>
  void linear(Scratch& scratch, const Matrix& matrix, int panel, int ahead, const Activations& in, int first, int end, const F& out_of,
              int stride, bool adds);
  void linear(Scratch& scratch, const Matrix& matrix, int panel, int ahead, const Activations& in, int first, int end, float* out, int stride);
  void share_keys();
  void begin_keys(int thread, int layer);
  const std::uint8_t* next_keys(Scratch& scratch, std::size_t bytes) const;
  void join_likeliest();
  float* query_of(int row, int head) { return queries_.data() + static_cast<std::size_t>(row) * attention_ + head * head_size_; }
  std::uint8_t* kv_at(int layer, int block, int head) const;
  void lap(int thread, int phase);

  Matrix matrix(const Weights& weights, const std::string& name, Format format, int outputs, int inputs, int block) const;
  const float* vector(const Weights& weights, const std::string& name, std::size_t size) const;

  const Config config_;
  const Kernels& kernels_;
  const KvFormat kv_format_;
  const int blocks_;
  int width_, head_size_, attention_, ffn_;  // padded
  std::vector<Layer> layers_;
  Matrix head_{};
  const float* output_norm_ = nullptr;
  const void* embedding_ = nullptr;
  std::uint8_t* kv_ = nullptr;
  std::size_t kv_size_ = 0, kv_head_ = 0, kv_block_ = 0, kv_layer_ = 0;
  std::unique_ptr<Populator> populator_;  // ends before the memory
  Pool pool_;

  // One step.
  const std::int32_t* tokens_ = nullptr;
  const std::vector<Rows>* sequences_ = nullptr;
  const std::int32_t* logits_rows_ = nullptr;
  float* logits_ = nullptr;
  Likeliest* likeliest_ = nullptr;
  std::vector<std::int32_t> row_sequence_, row_position_, all_rows_;
  Stage all_, last_;
  std::vector<Stage> own_;  // one a thread, if each has rows of its own in this step; else none is used
  bool has_own_ = false;
  std::vector<std::vector<std::int32_t>> own_rows_;
  Lines<float> x_, last_x_, branch_, last_branch_;
  Lines<float> queries_, attention_out_;
  std::vector<Lines<float>> rotations_;  // [rotary][row][2][pairs]: cosines, sines
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::vector<double> profile_;
  double lap_start_ = 0;
};

}  // namespace farthing
