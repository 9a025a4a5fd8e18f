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
// Keys and values that a thread asks for before an attention, so that they are still in the last level of cache.
constexpr std::size_t kKeysAhead = 2 << 20;

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
  stage.is_private = rows <= kPrivateRows && !c.has_post_norms && !stage.is_own;
  const std::size_t copies = stage.is_private ? pool_.threads() : 1;
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

void Model::items_of(Stage& stage) const {
  stage.items.clear();
  const std::int32_t* rows = stage.step_rows;
  const int group = config_.heads / config_.kv_heads, most = kernels_.rows_attend, count = stage.rows;
  // So few items that threads would wait for the longest: cut the heads of a group apart.
  const bool is_few = count * config_.kv_heads < 4 * pool_.threads() && pool_.threads() > 1;
  const int heads = std::min(is_few ? (group + 1) / 2 : group, most), tall = std::max(1, most / heads);
  for (int i = 0; i < count;) {
    int n = 1;
    const int sequence = row_sequence_[rows[i]];
    while (i + n < count && n < tall && rows[i + n] == rows[i] + n && row_sequence_[rows[i + n]] == sequence) ++n;
    for (int g = 0; g < config_.kv_heads; ++g)
      for (int h = 0; h < group; h += heads)
        stage.items.push_back({sequence, rows[i], n, g * group + h, std::min(heads, group - h), stage.places[i]});
    i += n;
  }
}

// Tiles of rows in turn to each thread, so that later rows, which see more keys, are not all one's.
void Model::share_rows(int count) {
  own_.resize(pool_.threads());
  own_rows_.resize(pool_.threads());
  for (auto& rows : own_rows_) rows.clear();
  const int tall = kernels_.rows_many[static_cast<int>(config_.format)];
  for (int row = 0; row < count; ++row) own_rows_[row / tall % pool_.threads()].push_back(row);
  for (int thread = 0; thread < pool_.threads(); ++thread) {
    Stage& stage = own_[thread];
    stage.is_own = true;
    stage.places = stage.step_rows = own_rows_[thread].data();
    stage.x = all_.x;
    stage.branch = all_.branch;
    shape(stage, static_cast<int>(own_rows_[thread].size()));
    items_of(stage);
  }
}

// Sequence by sequence in turn to each thread, the last ones first, as attention takes them; those who find keys in the cache
// need not be those who asked.
void Model::share_keys() {
  for (auto& one : scratch_) one->keys.clear();
  if (!kernels_.asks_keys || (config_.format != Format::q4 && config_.format != Format::q4_0)) return;
  const std::size_t most = kKeysAhead / kv_block_ + 1;
  for (std::size_t s = sequences_->size(); s-- > 0;) {
    const Rows& rows = (*sequences_)[s];
    std::vector<std::int32_t>& keys = scratch_[s % scratch_.size()]->keys;
    for (int block = 0; block <= (rows.start + rows.count - 1) / kTile && keys.size() < most; ++block) keys.push_back(rows.blocks[block]);
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
  std::int32_t highest = 0;
  for (const Rows& one : sequences)
    for (int block = one.start / kTile; block <= (one.start + one.count - 1) / kTile; ++block) highest = std::max(highest, one.blocks[block]);
  populator_->begin(static_cast<std::size_t>(highest) + 1);
  const auto enough = [](auto& memory, std::size_t size) {
    if (memory.size() < size) memory.resize(size);
    return memory.data();
  };
  const auto memory_of = [&](int rows, Lines<float>& x, Lines<float>& branch, Stage& stage) {
    const std::size_t size = static_cast<std::size_t>(rows) * width_;
    stage.x = enough(x, size);
    stage.branch = config_.has_post_norms ? enough(branch, size) : nullptr;
  };
  memory_of(count, x_, branch_, all_);
  memory_of(logits_count, last_x_, last_branch_, last_);
  all_.places = all_.step_rows = last_.places = all_rows_.data();
  last_.step_rows = logits_rows;
  has_own_ = pool_.threads() > 1 && config_.format == Format::q8 && count >= kernels_.rows_own * pool_.threads();
  if (has_own_) {
    share_rows(count);
  } else {
    shape(all_, count);
    items_of(all_);
  }
  last_.rows = logits_count;
  if (logits_count) shape(last_, logits_count);
  items_of(last_);
  enough(queries_, static_cast<std::size_t>(count) * attention_);
  enough(attention_out_, static_cast<std::size_t>(count) * attention_);
  for (std::size_t r = 0; r < rotations_.size(); ++r)
    enough(rotations_[r], static_cast<std::size_t>(count) * 2 * config_.rotary_frequencies[r].size());
  share_keys();
  lap_start_ = now();
  pool_.run([this](int thread) { pass(thread); });
  if (likeliest_) join_likeliest();
  populator_->end();
}

void Model::pass(int thread) {
  kernels_.begin();
  const int last = config_.layers - 1;
  Stage& stage = has_own_ ? own_[thread] : all_;
  embed(stage);
  meet(stage);
  lap(thread, kEmbed);
  for (int l = 0; l <= last; ++l) {
    before(thread, l, stage);
    if (l < last) after(thread, l, stage);
  }
  if (!last_.rows) return kernels_.end();
  after(thread, last, last_);
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
  if (index == 0) begin_keys(thread, index);
  qkv(thread, layer, index, in, stage);
  stage.next = 0;
  pool_.barrier();  // whoever goes on reads keys and values that others have written
  lap(thread, kQkv);
}

void Model::after(int thread, int index, Stage& stage) {
  const Layer& layer = layers_[index];
  attend(thread, layer, index, stage);
  meet(stage);
  lap(thread, kAttend);
  begin_keys(thread, index + 1);
  const Activations& heads = attended(thread, stage);
  lap(thread, kNorm);
  project(thread, layer.o, heads, stage);
  meet(stage);
  lap(thread, kProject);
  const Activations& middle = normed(thread, stage, stage.normed, layer.ffn_norm, layer.attention_post_norm);
  lap(thread, kNorm);
  feed(thread, layer, middle, stage);
  meet(stage);
  lap(thread, kFeed);
  project(thread, layer.down, stage.down, stage);
  meet(stage);
  lap(thread, kDown);
}

}  // namespace farthing
