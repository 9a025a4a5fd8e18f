// A decoder's weights and memory: found, checked, held. What is computed with them is in pass.cpp.
#include "model.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "scratch.h"

namespace farthing {
namespace {

constexpr int kAlign = 64;
const char* const kPhaseNames[kPhases] = {"embed", "norm", "qkv", "attend", "project", "feed", "down", "head"};

}  // namespace

Matrix Model::matrix(const Weights& weights, const std::string& name, Format format, int outputs, int inputs, int block) const {
  const auto found = weights.offsets.find(name);
  if (found == weights.offsets.end()) throw std::invalid_argument("packed weights have no `" + name + "`");
  if (const auto own = config_.formats.find(name); own != config_.formats.end()) format = own->second;
  if (outputs % kTile || inputs % block || block % kTile) throw std::invalid_argument("sizes of `" + name + "` are not padded");
  Matrix m{format, outputs, inputs, block, nullptr, panel_bytes(format, inputs, block), inputs / (format == Format::q4 || format == Format::q4_0 ? 8 : 4)};
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
    s->query.resize(static_cast<std::size_t>(kRowsMax) * padded(head_size_, 64) * 4);
    s->query_sums.resize(static_cast<std::size_t>(kRowsMax) * head_size_ / kTile);
    s->query_owed.resize(static_cast<std::size_t>(kRowsMax) * head_size_ / kTile);
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
  populator_ = std::make_unique<Populator>(kv_, c.layers, blocks, kv_block_);
}

Model::~Model() {
  populator_.reset();
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

std::vector<std::pair<std::string, double>> Model::take_profile() {
  std::vector<std::pair<std::string, double>> result;
  for (int i = 0; i < kPhases; ++i) result.emplace_back(kPhaseNames[i], std::exchange(profile_[i], 0.0));
  return result;
}

}  // namespace farthing
