// One step: the order of its phases. All threads share each phase, with barriers between; what they do in it is phases.cpp's.
#include <algorithm>
#include <chrono>
#include <limits>

#include "scratch.h"

namespace farthing {
namespace {

// So few rows every thread quantises for itself, which is cheaper than a barrier.
constexpr int kPrivateRows = 12;
// Fewer rows than that go in taller tiles: then reading weights into registers counts for more than registers for sums.
constexpr int kFewRows = 48;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void Model::lap(int thread, int phase) {
  if (thread != 0) return;
  const double t = now();
  profile_[phase] += t - lap_start_;
  lap_start_ = t;
}

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
  const auto tallest = [&](Format format) {
    return (rows < kFewRows ? kernels_.rows_few : kernels_.rows_many)[static_cast<int>(format)];
  };
  const int tall = tallest(c.format);
  for (std::size_t i = 0; i < copies; ++i) {
    stage.normed[i].shape(kernels_, rows, tall, width_, c.width_part, c.format);
    stage.attended[i].shape(kernels_, rows, tall, attention_, c.attention_part, c.format);
    if (&stage == &last_) stage.final[i].shape(kernels_, rows, tallest(c.head_format), width_, c.head_part, c.head_format);
  }
  stage.down.shape(kernels_, rows, tall, ffn_, c.ffn_part, c.format);
}

void Model::items_of(const std::int32_t* rows, int count, std::vector<Item>& items) const {
  items.clear();
  const int group = config_.heads / config_.kv_heads, most = kernels_.rows_attend;
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
  const auto enough = [](auto& memory, std::size_t size) {
    if (memory.size() < size) memory.resize(size);
    return memory.data();
  };
  shape(all_, count);
  if (logits_count) shape(last_, logits_count);
  last_.rows = logits_count;
  items_of(all_rows_.data(), count, items_);
  items_of(logits_rows, logits_count, last_items_);
  enough(queries_, static_cast<std::size_t>(count) * attention_);
  enough(attention_out_, static_cast<std::size_t>(count) * attention_);
  for (std::size_t r = 0; r < rotations_.size(); ++r)
    enough(rotations_[r], static_cast<std::size_t>(count) * 2 * config_.rotary_frequencies[r].size());
  lap_start_ = now();
  pool_.run([this](int thread) { pass(thread); });
  if (likeliest_) join_likeliest();
}

void Model::pass(int thread) {
  kernels_.begin();
  const int last = config_.layers - 1;
  embed();
  pool_.barrier();
  lap(thread, kEmbed);
  for (int l = 0; l <= last; ++l) {
    before(thread, l, all_);
    if (l < last) after(thread, l, all_, items_);
  }
  if (!last_.rows) return kernels_.end();
  after(thread, last, last_, last_items_);
  const Activations& in = normed(thread, last_, last_.final, output_norm_, layers_.back().ffn_post_norm);
  lap(thread, kNorm);
  head(thread, in);
  kernels_.end();
  pool_.barrier();
  lap(thread, kHead);
}

void Model::before(int thread, int index, Stage& stage) {
  const Layer& layer = layers_[index];
  const Activations& in = normed(thread, stage, stage.normed, layer.attention_norm, index ? layers_[index - 1].ffn_post_norm : nullptr);
  lap(thread, kNorm);
  qkv(thread, layer, index, in);
  pool_.barrier();
  lap(thread, kQkv);
}

void Model::after(int thread, int index, Stage& stage, const std::vector<Item>& items) {
  const Layer& layer = layers_[index];
  attend(thread, layer, index, items);
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
}

}  // namespace farthing
