#include "model.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>

namespace farthing {
namespace {

constexpr int kAlign = 64;
// So few rows every thread quantises for itself, which is cheaper than a barrier.
constexpr int kPrivateRows = 12;
// Tiles that go through a panel of weights one after another before the next panel: it stays in the first level of cache.
constexpr int kTilesAtOnce = 8;
// Bytes ahead that weights are asked for in their own panel, since the processor's own prefetch stops at each page.
constexpr int kAhead = 4096;

enum Phase { kEmbed, kNorm, kQkv, kAttend, kProject, kFeed, kDown, kHead, kPhases };
const char* const kPhaseNames[kPhases] = {"embed", "norm", "qkv", "attend", "project", "feed", "down", "head"};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// ---- rows in tiles ------------------------------------------------------------------------------------------------

void Activations::shape(int rows, int rows_max, int inputs, int part, Format format) {
  count_ = rows;
  tiles_ = (rows + rows_max - 1) / rows_max;
  inputs_ = inputs;
  part_ = part;
  format_ = format;
  const std::size_t n = rows, size = n * inputs * (format == Format::f32 ? sizeof(float) : 1);
  if (values_.size() < size) values_.resize(size);
  if (format == Format::f32) return;
  if (scales_.size() < n * (inputs / part)) scales_.resize(n * (inputs / part));
  if (offsets_.size() < n * (inputs / part)) offsets_.resize(n * (inputs / part));
  if (sums_.size() < n * (inputs / kTile)) sums_.resize(n * (inputs / kTile));
}

int Activations::first(int tile) const {  // heights differ by one at most
  return static_cast<int>(static_cast<std::int64_t>(count_) * tile / tiles_);
}

int Activations::tile_of(int row) const {
  int tile = static_cast<int>(static_cast<std::int64_t>(row) * tiles_ / count_);
  while (first(tile + 1) <= row) ++tile;
  while (first(tile) > row) --tile;
  return tile;
}

ActivationTile Activations::tile(int index) const {
  const std::size_t at = first(index);
  const std::size_t parts = inputs_ / part_;
  return {values_.data() + at * inputs_ * (format_ == Format::f32 ? sizeof(float) : 1), scales_.data() + at * parts,
          offsets_.data() + at * parts, sums_.data() + at * (inputs_ / kTile)};
}

void Activations::put(const Kernels& kernels, int row, const float* x, int from, int count) {
  const int tile = tile_of(row), column = row - first(tile), height = rows(tile);
  const std::size_t at = first(tile);
  if (format_ == Format::f32) {
    float* out = reinterpret_cast<float*>(values_.data()) + at * inputs_ + column;
    for (int i = 0; i < count; ++i) out[static_cast<std::size_t>(from + i) * height] = x[i];
    return;
  }
  const std::size_t part = from / part_, parts = inputs_ / part_, units = inputs_ / kTile;
  kernels.quantise(x, count, part_,
                   {values_.data() + at * inputs_ + static_cast<std::size_t>(from) * height + column * kUnit,
                    scales_.data() + at * parts + part * height + column,
                    offsets_.data() + at * parts + part * height + column,
                    sums_.data() + at * units + static_cast<std::size_t>(from / kTile) * height + column, height});
}

void Activations::will_put(int tile, int from, int count) {
  if (format_ == Format::f32) return;
  const std::size_t at = first(tile), height = rows(tile), part = from / part_, parts = inputs_ / part_;
  const std::size_t units = inputs_ / kTile, scales = count / part_ * height;
  will_write(values_.data() + at * inputs_ + from * height, count * height);
  will_write(scales_.data() + at * parts + part * height, scales * sizeof(float));
  will_write(offsets_.data() + at * parts + part * height, scales * sizeof(std::int32_t));
  will_write(sums_.data() + at * units + from / kTile * height, count / kTile * height * sizeof(float));
}

// ---- the model ----------------------------------------------------------------------------------------------------

struct Model::Scratch {
  Lines<float> row;                    // one row of the widest layer
  Lines<float> tile;                   // so many tiles x rows_max x the widest item of outputs
  Lines<float> feed;                   // so many tiles x rows_max x ffn_block
  Lines<float> attention;              // rows_max x head
  Lines<std::uint8_t> query;           // rows_max x head, in the kernel's layout
  Lines<float> query_sums;
  std::vector<Likeliest> likeliest;
};

Matrix Model::matrix(const Weights& weights, const std::string& name, Format format, int outputs, int inputs, int block) const {
  const auto found = weights.offsets.find(name);
  if (found == weights.offsets.end()) throw std::invalid_argument("packed weights have no `" + name + "`");
  if (const auto own = config_.formats.find(name); own != config_.formats.end()) format = own->second;
  if (outputs % kTile || inputs % block || block % kTile) throw std::invalid_argument("sizes of `" + name + "` are not padded");
  Matrix m{format, outputs, inputs, block, nullptr, panel_bytes(format, inputs, block)};
  const std::size_t size = m.panel * m.panels();
  if (found->second % kAlign || found->second > weights.size || weights.size - found->second < size)
    throw std::invalid_argument("`" + name + "` is outside of the packed weights");
  m.data = weights.bytes + found->second;
  return m;
}

const float* Model::vector(const Weights& weights, const std::string& name, std::size_t size) const {
  const auto found = weights.offsets.find(name);
  if (found == weights.offsets.end()) throw std::invalid_argument("packed weights have no `" + name + "`");
  const std::size_t bytes = size * sizeof(float);
  if (found->second % kAlign || found->second > weights.size || weights.size - found->second < bytes)
    throw std::invalid_argument("`" + name + "` is outside of the packed weights");
  return reinterpret_cast<const float*>(weights.bytes + found->second);
}

Model::Model(const Config& config, const Weights& weights, KvFormat kv, int blocks, int threads)
    : config_(config), kernels_(farthing::kernels()), kv_format_(kv), blocks_(blocks), width_(padded(config.width)),
      head_size_(padded(config.head_size)), attention_(head_size_ * config.heads), ffn_(padded(config.ffn_width)),
      pool_(threads) {
  const Config& c = config_;
  const int qkv_outputs = (c.heads + 2 * c.kv_heads) * head_size_;
  if (c.embedding_is_f32) {
    embedding_ = vector(weights, "embedding", static_cast<std::size_t>(c.vocabulary) * width_);
  } else {
    const auto found = weights.offsets.find("embedding");
    const std::size_t size = static_cast<std::size_t>(c.vocabulary) * width_ * 2;
    if (found == weights.offsets.end() || found->second % kAlign || found->second > weights.size ||
        weights.size - found->second < size)
      throw std::invalid_argument("`embedding` is outside of the packed weights");
    embedding_ = weights.bytes + found->second;
  }
  head_ = matrix(weights, "head", c.head_format, padded(c.vocabulary), width_, c.width_block);
  output_norm_ = vector(weights, "output_norm", width_);
  for (int i = 0; i < c.layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    Layer layer{};
    layer.qkv = matrix(weights, p + "qkv", c.format, qkv_outputs, width_, c.width_block);
    layer.o = matrix(weights, p + "o", c.format, width_, attention_, c.attention_block);
    layer.gate_up = matrix(weights, p + "gate_up", c.format, 2 * ffn_, width_, c.width_block);
    layer.down = matrix(weights, p + "down", c.format, width_, ffn_, c.ffn_block);
    layer.attention_norm = vector(weights, p + "attention_norm", width_);
    layer.ffn_norm = vector(weights, p + "ffn_norm", width_);
    if (c.has_post_norms) {
      layer.attention_post_norm = vector(weights, p + "attention_post_norm", width_);
      layer.ffn_post_norm = vector(weights, p + "ffn_post_norm", width_);
    }
    if (c.has_qk_norm) {
      layer.q_norm = vector(weights, p + "q_norm", head_size_);
      layer.k_norm = vector(weights, p + "k_norm", head_size_);
    }
    if (c.has_qkv_bias) layer.qkv_bias = vector(weights, p + "qkv_bias", qkv_outputs);
    layer.rotary = c.rotary_of_layer[i];
    layer.window = c.window_of_layer[i];
    layers_.push_back(layer);
  }
  for (int t = 0; t < threads; ++t) {
    auto s = std::make_unique<Scratch>();
    s->row.resize(std::max({width_, attention_, ffn_}));
    s->tile.resize(static_cast<std::size_t>(kTilesAtOnce) * kRowsMax * 2 * std::max(head_size_, kTile));
    s->feed.resize(static_cast<std::size_t>(kTilesAtOnce) * kRowsMax * c.ffn_block);
    s->attention.resize(static_cast<std::size_t>(kRowsMax) * head_size_);
    s->query.resize(static_cast<std::size_t>(kRowsMax) * head_size_ * 4);
    s->query_sums.resize(static_cast<std::size_t>(kRowsMax) * head_size_ / kTile);
    scratch_.push_back(std::move(s));
  }
  rotations_.resize(c.rotary_frequencies.size());
  profile_.resize(kPhases);

  kv_head_ = kv_head_bytes(kv, head_size_);
  kv_block_ = kv_head_ * c.kv_heads;
  kv_layer_ = kv_block_ * blocks;
  kv_size_ = kv_layer_ * c.layers;
  void* memory = mmap(nullptr, kv_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  kv_ = static_cast<std::uint8_t*>(memory);
#if defined(MADV_HUGEPAGE)
  madvise(kv_, kv_size_, MADV_HUGEPAGE);
#endif
}

Model::~Model() {
  if (kv_) munmap(kv_, kv_size_);
}

std::uint8_t* Model::kv_at(int layer, int block, int head) const {
  return kv_ + layer * kv_layer_ + block * kv_block_ + head * kv_head_;
}

void Model::copy_block(int source, int target) {
  if (source == target) return;
  for (int layer = 0; layer < config_.layers; ++layer)
    std::memcpy(kv_at(layer, target, 0), kv_at(layer, source, 0), kv_block_);
}

void Model::lap(int thread, int phase) {
  if (thread != 0) return;
  const double t = now();
  profile_[phase] += t - lap_start_;
  lap_start_ = t;
}

std::vector<std::pair<std::string, double>> Model::take_profile() {
  std::vector<std::pair<std::string, double>> result;
  for (int i = 0; i < kPhases; ++i) result.emplace_back(kPhaseNames[i], std::exchange(profile_[i], 0.0));
  return result;
}

// ---- one step -----------------------------------------------------------------------------------------------------

void Model::shape(Stage& stage, int rows) {
  const Config& c = config_;
  stage.rows = rows;
  stage.is_private = rows <= kPrivateRows && !c.has_post_norms;
  const std::size_t copies = stage.is_private ? pool_.threads() : 1, size = static_cast<std::size_t>(rows) * width_;
  if (stage.x.size() < size) stage.x.resize(size);
  if (c.has_post_norms && stage.branch.size() < size) stage.branch.resize(size);
  if (stage.normed.size() < copies) stage.normed.resize(copies);
  if (stage.attended.size() < copies) stage.attended.resize(copies);
  if (stage.final.size() < copies) stage.final.resize(copies);
  const auto rows_best = [&](Format format) { return kernels_.rows_best[static_cast<int>(format)]; };
  const int best = rows_best(c.format);
  for (std::size_t i = 0; i < copies; ++i) {
    stage.normed[i].shape(rows, best, width_, c.width_part, c.format);
    stage.attended[i].shape(rows, best, attention_, c.attention_part, c.format);
    if (&stage == &last_) stage.final[i].shape(rows, rows_best(c.head_format), width_, c.head_part, c.head_format);
  }
  stage.down.shape(rows, best, ffn_, c.ffn_part, c.format);
}

void Model::items_of(const std::int32_t* rows, int count, std::vector<Item>& items) const {
  items.clear();
  const int group = config_.heads / config_.kv_heads, most = kernels_.rows_max;
  // So few items that threads would wait for the longest: cut the heads of a group apart.
  const bool is_few = count * config_.kv_heads < 4 * pool_.threads() && pool_.threads() > 1;
  const int heads = std::min(is_few ? (group + 1) / 2 : group, most), tall = std::max(1, most / heads);
  for (int i = 0; i < count;) {
    int n = 1;
    const int sequence = row_sequence_[rows[i]];
    while (i + n < count && n < tall && rows[i + n] == rows[i] + n && row_sequence_[rows[i + n]] == sequence) ++n;
    for (int g = 0; g < config_.kv_heads; ++g)
      for (int h = 0; h < group; h += heads)
        items.push_back({sequence, rows[i], n, g * group + h, std::min(heads, group - h), i});
    i += n;
  }
}

void Model::run(const std::int32_t* tokens, int count, const std::vector<Rows>& sequences, const std::int32_t* logits_rows,
                int logits_count, float* logits, Likeliest* likeliest) {
  tokens_ = tokens;
  sequences_ = &sequences;
  logits_rows_ = logits_rows;
  logits_ = logits;
  likeliest_ = likeliest;
  row_sequence_.resize(count);
  row_position_.resize(count);
  all_rows_.resize(count);
  int row = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (int i = 0; i < sequences[s].count; ++i, ++row) {
      row_sequence_[row] = static_cast<std::int32_t>(s);
      row_position_[row] = sequences[s].start + i;
      all_rows_[row] = row;
    }
  shape(all_, count);
  if (logits_count) shape(last_, logits_count);
  last_.rows = logits_count;
  const std::size_t size = static_cast<std::size_t>(count) * attention_;
  if (queries_.size() < size) queries_.resize(size);
  if (attention_out_.size() < size) attention_out_.resize(size);
  for (std::size_t r = 0; r < rotations_.size(); ++r) {
    const std::size_t need = static_cast<std::size_t>(count) * 2 * config_.rotary_frequencies[r].size();
    if (rotations_[r].size() < need) rotations_[r].resize(need);
  }
  items_of(all_rows_.data(), count, items_);
  items_of(logits_rows, logits_count, last_items_);
  lap_start_ = now();
  pool_.run([this](int thread) { pass(thread); });
  if (likeliest_) join_likeliest();
}

void Model::pass(int thread) {
  embed(thread);
  pool_.barrier();
  lap(thread, kEmbed);
  const float* post = nullptr;
  for (int l = 0; l < config_.layers; ++l) {
    const Layer& layer = layers_[l];
    const bool is_last = l + 1 == config_.layers;
    const Activations& in = normed(thread, all_, all_.normed, layer.attention_norm, post);
    lap(thread, kNorm);
    qkv(thread, layer, l, in);
    pool_.barrier();
    lap(thread, kQkv);
    if (is_last && !last_.rows) return;
    Stage& stage = is_last ? last_ : all_;
    attend(thread, layer, l, is_last ? last_items_ : items_);
    pool_.barrier();
    lap(thread, kAttend);
    const Activations& heads = attended(thread, stage);
    lap(thread, kNorm);
    project(thread, layer.o, heads, stage);
    pool_.barrier();
    lap(thread, kProject);
    const Activations& middle = normed(thread, stage, stage.normed, layer.ffn_norm, layer.attention_post_norm);
    lap(thread, kNorm);
    feed(thread, layer, middle, stage);
    pool_.barrier();
    lap(thread, kFeed);
    project(thread, layer.down, stage.down, stage);
    pool_.barrier();
    lap(thread, kDown);
    post = layer.ffn_post_norm;
  }
  const Activations& in = normed(thread, last_, last_.final, output_norm_, post);
  lap(thread, kNorm);
  head(thread, in);
  pool_.barrier();
  lap(thread, kHead);
}

void Model::embed(int thread) {
  (void)thread;
  for (int row; (row = pool_.take()) < all_.rows;) {
    float* x = all_.x.data() + static_cast<std::size_t>(row) * width_;
    const std::size_t at = static_cast<std::size_t>(tokens_[row]) * width_;
    if (config_.embedding_is_f32) {
      std::memcpy(x, static_cast<const float*>(embedding_) + at, width_ * sizeof(float));
      if (config_.embedding_scale != 1.0f) kernels_.scale(config_.embedding_scale, width_, x);
    } else {
      kernels_.expand_f16(static_cast<const std::uint16_t*>(embedding_) + at, width_, config_.embedding_scale, x);
    }
    for (std::size_t r = 0; r < rotations_.size(); ++r) {
      const auto& frequencies = config_.rotary_frequencies[r];
      const std::size_t pairs = frequencies.size();
      float* out = rotations_[r].data() + row * 2 * pairs;
      for (std::size_t i = 0; i < pairs; ++i) {
        const double angle = row_position_[row] * frequencies[i];
        out[i] = static_cast<float>(std::cos(angle) * config_.rotary_factors[r]);
        out[pairs + i] = static_cast<float>(std::sin(angle) * config_.rotary_factors[r]);
      }
    }
  }
}

// Each row of a stage once, or by every thread for itself. An item is a tile: rows of a tile share cache lines.
template <class F>
void Model::by_tiles(const Stage& stage, Activations& out, const F& one) {
  if (stage.is_private) {
    for (int row = 0; row < stage.rows; ++row) one(row);
    return;
  }
  for (int tile; (tile = pool_.take()) < out.tiles();) {
    out.will_put(tile, 0, out.inputs());
    for (int row = out.first(tile); row < out.first(tile + 1); ++row) one(row);
  }
  pool_.barrier();
}

// The rows of a stage, normed and quantised; first adds the branch that a post norm waits for. Ends with a barrier
// unless every thread did it for itself.
const Activations& Model::normed(int thread, Stage& stage, std::vector<Activations>& to, const float* norm,
                                 const float* post) {
  Activations& out = to[stage.is_private ? thread : 0];
  float* scratch = scratch_[thread]->row.data();
  const auto one = [&](int row) {
    float* x = stage.x.data() + static_cast<std::size_t>(row) * width_;
    if (post) {
      kernels_.rms_norm(stage.branch.data() + static_cast<std::size_t>(row) * width_, post, width_, config_.width,
                        config_.norm_epsilon, scratch);
      kernels_.add(scratch, width_, x);
    }
    kernels_.rms_norm(x, norm, width_, config_.width, config_.norm_epsilon, scratch);
    out.put(kernels_, row, scratch, 0, width_);
  };
  by_tiles(stage, out, one);
  return out;
}

const Activations& Model::attended(int thread, Stage& stage) {
  Activations& out = stage.attended[stage.is_private ? thread : 0];
  const auto one = [&](int row) {
    out.put(kernels_, row, attention_out_.data() + static_cast<std::size_t>(row) * attention_, 0, attention_);
  };
  by_tiles(stage, out, one);
  return out;
}

// Items: for each key-value head its keys and values together, then one a query head. Panels lie in that order.
void Model::qkv(int thread, const Layer& layer, int index, const Activations& in) {
  Scratch& scratch = *scratch_[thread];
  const Config& c = config_;
  const int panels = head_size_ / kTile, pairs = static_cast<int>(c.rotary_frequencies[layer.rotary].size());
  for (int item; (item = pool_.take()) < c.kv_heads + c.heads;) {
    const bool is_kv = item < c.kv_heads;
    const int first = is_kv ? item * 2 * panels : (2 * c.kv_heads + item - c.kv_heads) * panels;
    const int count = is_kv ? 2 * panels : panels, stride = count * kTile;
    for (int t = 0, end; t < in.tiles(); t = end) {
      end = std::min(t + kTilesAtOnce, in.tiles());
      const int rows = in.first(end) - in.first(t);
      float* tile = scratch.tile.data();
      if (!is_kv)
        for (int r = 0; r < rows; ++r) will_write(query_of(in.first(t) + r, item - c.kv_heads), head_size_ * sizeof(float));
      for (int p = 0; p < count; ++p)
        linear(layer.qkv, first + p, p + 1 < count ? first + p + 1 : first + count * pool_.threads(), in, t, end, tile + p * kTile, stride);
      for (int r = 0; r < rows; ++r) {
        const int row = in.first(t) + r;
        float* out = tile + r * stride;
        if (layer.qkv_bias) kernels_.add(layer.qkv_bias + first * kTile, stride, out);
        const float* norm = is_kv ? layer.k_norm : layer.q_norm;
        if (norm) kernels_.rms_norm(out, norm, head_size_, c.head_size, c.norm_epsilon, out);
        const float* cosines = rotations_[layer.rotary].data() + static_cast<std::size_t>(row) * 2 * pairs;
        kernels_.rotate(out, cosines, cosines + pairs, pairs);
        if (is_kv) {
          const Rows& sequence = (*sequences_)[row_sequence_[row]];
          const int position = row_position_[row];
          kernels_.write_kv(kv_format_, out, out + head_size_, head_size_,
                            kv_at(index, sequence.blocks[position / kTile], item), position % kTile);
        } else {
          std::memcpy(query_of(row, item - c.kv_heads), out, head_size_ * sizeof(float));
        }
      }
    }
  }
}

void Model::attend(int thread, const Layer& layer, int index, const std::vector<Item>& items) {
  Scratch& scratch = *scratch_[thread];
  const int group = config_.heads / config_.kv_heads, count = static_cast<int>(items.size());
  const bool is_last = &items == &last_items_;
  const auto item_at = [&](int i) -> const Item& { return items[is_last ? i : count - 1 - i]; };  // later rows see more keys: longest first
  for (int i = pool_.take(), after; i < count + (is_last ? 1 : 0); i = after) {
    after = pool_.take();  // known now, so that its keys can be asked for
    if (i == count) {  // after the last attention only some rows go on
      for (int r = 0; r < last_.rows; ++r)
        std::memcpy(last_.x.data() + static_cast<std::size_t>(r) * width_,
                    all_.x.data() + static_cast<std::size_t>(logits_rows_[r]) * width_, width_ * sizeof(float));
      continue;
    }
    const Item& item = item_at(i);
    const Rows& sequence = (*sequences_)[item.sequence];
    const int n = item.rows * item.heads;
    float scales[kRowsMax];
    std::int32_t offsets[kRowsMax], first[kRowsMax], last[kRowsMax];
    float* out[kRowsMax];
    for (int r = 0, column = 0; r < item.rows; ++r) {
      const int position = row_position_[item.row + r];
      for (int h = 0; h < item.heads; ++h, ++column) {
        const float* query = query_of(item.row + r, item.head + h);
        last[column] = position;
        first[column] = layer.window ? std::max(0, position - layer.window + 1) : 0;
        out[column] = attention_out_.data() + static_cast<std::size_t>(item.out + r) * attention_ + (item.head + h) * head_size_;
        will_write(out[column], head_size_ * sizeof(float));
        switch (kv_format_) {
          case KvFormat::f32:
            for (int d = 0; d < head_size_; ++d) reinterpret_cast<float*>(scratch.query.data())[d * n + column] = query[d];
            break;
          case KvFormat::bf16:
            kernels_.to_bf16(query, head_size_, n * 4, scratch.query.data() + column * 4);
            break;
          case KvFormat::int8:
            kernels_.quantise(query, head_size_, head_size_,
                              {scratch.query.data() + column * kUnit, scales + column, offsets + column,
                               scratch.query_sums.data() + column, n});
            break;
        }
      }
    }
    const std::uint8_t* pool = kv_at(index, 0, item.head / group);
    const std::uint8_t* next[2] = {pool, pool};
    if (after < count) {
      const Item& other = item_at(after);
      const int position = row_position_[other.row], from = layer.window ? std::max(0, position - layer.window + 1) : 0;
      const int block = from / (2 * kTile) * 2, last_block = position / kTile;
      for (int i = 0; i < 2; ++i)
        next[i] = kv_at(index, (*sequences_)[other.sequence].blocks[std::min(block + i, last_block)], other.head / group);
    }
    kernels_.attend(kv_format_, {scratch.query.data(), scales, offsets, n, head_size_, pool, kv_block_, sequence.blocks,
                                 {next[0], next[1]}, first, last, config_.attention_soft_cap, config_.attention_scale, out,
                                 scratch.attention.data()});
  }
}

// One panel times the tiles [first, end), rows one after another from `out` on. Meanwhile `ahead` is fetched, each tile's
// share of it: the panel that is likely to be this thread's next. A single tile is done before memory is: it asks for
// what comes a little later in its own panel.
void Model::linear(const Matrix& m, int panel, int ahead, const Activations& in, int first, int end, float* out, int stride) {
  const int steps = m.inputs / (m.format == Format::q4 || m.format == Format::q4_0 ? 8 : 4), step_bytes = static_cast<int>(m.panel / steps);
  for (int t = first; t < end; ++t) {
    LinearArgs args{m.at(panel), in.tile(t), in.rows(t), m.inputs, m.block, in.part(), out, stride};
    if (end - first == 1) {
      args.ahead_step = step_bytes;
      args.ahead = args.weights + kAhead;
    } else if (ahead < m.panels()) {
      args.ahead_step = step_bytes / (end - first) + 1;
      args.ahead = m.at(ahead) + static_cast<std::size_t>(args.ahead_step) * steps * (t - first);
    }
    kernels_.linear(m.format, args);
    out += in.rows(t) * stride;
  }
}

// x += matrix * in, or branch = matrix * in where a post norm comes between.
void Model::project(int thread, const Matrix& matrix, const Activations& in, Stage& stage) {
  float* tile = scratch_[thread]->tile.data();
  for (int panel; (panel = pool_.take()) < matrix.panels();)
    for (int t = 0, end; t < in.tiles(); t = end) {
      end = std::min(t + kTilesAtOnce, in.tiles());
      float* to = (config_.has_post_norms ? stage.branch.data() : stage.x.data()) + static_cast<std::size_t>(in.first(t)) * width_ + panel * kTile;
      const int rows = in.first(end) - in.first(t);
      for (int r = 0; r < rows; ++r) will_write(to + static_cast<std::size_t>(r) * width_, kTile * sizeof(float));
      linear(matrix, panel, panel + pool_.threads(), in, t, end, tile, kTile);
      for (int r = 0; r < rows; ++r) {
        float* y = to + static_cast<std::size_t>(r) * width_;
        if (config_.has_post_norms)
          std::memcpy(y, tile + r * kTile, kTile * sizeof(float));
        else
          kernels_.add(tile + r * kTile, kTile, y);
      }
    }
}

// An item is one block of `down`'s inputs: who computes it also quantises it.
void Model::feed(int thread, const Layer& layer, const Activations& in, Stage& stage) {
  Scratch& scratch = *scratch_[thread];
  const Matrix& m = layer.gate_up;
  const int block = layer.down.block, panels = block / (kTile / 2);
  for (int item; (item = pool_.take()) < layer.down.inputs / block;)
    for (int t = 0, end; t < in.tiles(); t = end) {
      end = std::min(t + kTilesAtOnce, in.tiles());
      const int rows = in.first(end) - in.first(t);
      float *tile = scratch.tile.data(), *h = scratch.feed.data();
      for (int i = t; i < end; ++i) stage.down.will_put(i, item * block, block);
      for (int p = 0; p < panels; ++p) {
        linear(m, item * panels + p, item * panels + (p + 1 < panels ? p + 1 : panels * pool_.threads()), in, t, end, tile, kTile);
        for (int r = 0; r < rows; ++r) kernels_.gate(config_.gate, tile + r * kTile, h + r * block + p * (kTile / 2));
      }
      for (int r = 0; r < rows; ++r) stage.down.put(kernels_, in.first(t) + r, h + r * block, item * block, block);
    }
}

void Model::head(int thread, const Activations& in) {
  Scratch& scratch = *scratch_[thread];
  float* tile = scratch.tile.data();
  const int group = 4;  // panels an item has
  const std::ptrdiff_t vocabulary = config_.vocabulary;
  if (likeliest_) scratch.likeliest.assign(last_.rows, {-std::numeric_limits<float>::infinity(), 0});
  for (int item; (item = pool_.take()) * group < head_.panels();)
    for (int panel = item * group; panel < std::min((item + 1) * group, head_.panels()); ++panel)
      for (int t = 0, end; t < in.tiles(); t = end) {
        end = std::min(t + kTilesAtOnce, in.tiles());
        const int first = in.first(t), rows = in.first(end) - first;
        linear(head_, panel, panel % group + 1 < group ? panel + 1 : panel + 1 + group * (pool_.threads() - 1), in, t, end, tile, kTile);
        if (config_.logit_soft_cap != 0) kernels_.soft_cap(config_.logit_soft_cap, rows * kTile, tile);
        const int columns = std::min<int>(kTile, config_.vocabulary - panel * kTile);
        for (int r = 0; r < rows; ++r) {
          const float* x = tile + r * kTile;
          if (logits_) std::memcpy(logits_ + (first + r) * vocabulary + panel * kTile, x, columns * sizeof(float));
          if (!likeliest_) continue;
          Likeliest& best = scratch.likeliest[first + r];  // items ascend: among equals the first stays
          const int at = kernels_.above(x, columns, &best.logit);
          if (at >= 0) best.token = panel * kTile + at;
        }
      }
}

// Of what each thread found: the largest, among equals the lower token; what is no number before all.
void Model::join_likeliest() {
  const auto comes_before = [](const Likeliest& a, const Likeliest& b) {
    const bool a_is_number = a.logit == a.logit, b_is_number = b.logit == b.logit;
    if (a_is_number != b_is_number) return b_is_number;
    if (a_is_number && a.logit != b.logit) return a.logit > b.logit;
    return a.token < b.token;
  };
  for (int row = 0; row < last_.rows; ++row) {
    likeliest_[row] = scratch_[0]->likeliest[row];
    for (const auto& one : scratch_)
      if (comes_before(one->likeliest[row], likeliest_[row])) likeliest_[row] = one->likeliest[row];
  }
}

}  // namespace farthing
