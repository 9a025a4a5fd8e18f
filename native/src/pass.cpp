// One step: which rows go together, and what threads do to them between barriers.
//
// Few rows are shared by all threads, phase by phase: each takes outputs of every matrix, so that weights are read once.
// Many rows are split into groups, and a thread takes a group through a whole layer: what a row is travels between
// phases in one core's cache, and threads meet once a layer, when its keys and values are there.
#include <algorithm>
#include <chrono>
#include <limits>

#include "scratch.h"

namespace farthing {
namespace {

// So few rows every thread quantises for itself, which is cheaper than a barrier.
constexpr int kPrivateRows = 12;
// From so many rows on they are split into groups: weights are read once a group, which costs less than rows that travel.
constexpr int kApartRows = 96;
// Rows of a group, about: its activations are to stay in the second level of cache.
constexpr int kGroupRows = 64;

// Keys and values that a thread asks for before an attention, at most: more would not stay in any cache.
constexpr std::size_t kKeysAheadBytes = std::size_t{3} << 19;

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

// Keeps the memory that a stage has.
void Model::shape(Stage& stage, int rows, int copies) const {
  const Config& c = config_;
  stage.rows = rows;
  const std::size_t n = copies;
  if (stage.normed.size() < n) stage.normed.resize(n);
  if (stage.attended.size() < n) stage.attended.resize(n);
  if (stage.final.size() < n) stage.final.resize(n);
  const auto rows_best = [&](Format format) { return kernels_.rows_best[static_cast<int>(format)]; };
  const int best = rows_best(c.format);
  for (std::size_t i = 0; i < n; ++i) {
    stage.normed[i].shape(rows, best, width_, c.width_part, c.format);
    stage.attended[i].shape(rows, best, attention_, c.attention_part, c.format);
    if (&stage == &last_) stage.final[i].shape(rows, rows_best(c.head_format), width_, c.head_part, c.head_format);
  }
  stage.down.shape(rows, best, ffn_, c.ffn_part, c.format);
}

// `are_shared`: by all threads.
void Model::items_of(const std::int32_t* rows, int count, bool are_shared, std::vector<Item>& items) const {
  items.clear();
  const int group = config_.heads / config_.kv_heads, most = kernels_.rows_max;
  // So few items that threads would wait for the longest: cut the heads of a group apart.
  const bool is_few = are_shared && count * config_.kv_heads < 4 * pool_.threads() && pool_.threads() > 1;
  const int heads = std::min(is_few ? (group + 1) / 2 : group, most), tall = std::max(1, most / heads);
  for (int i = 0; i < count;) {
    int n = 1;
    const int sequence = row_sequence_[rows[i]];
    while (i + n < count && n < tall && rows[i + n] == rows[i] + n && row_sequence_[rows[i + n]] == sequence) ++n;
    for (int g = 0; g < config_.kv_heads; ++g)
      for (int h = 0; h < group; h += heads)
        items.push_back({sequence, rows[i], n, g * group + h, std::min(heads, group - h), are_shared ? i : rows[i]});
    i += n;
  }
}

// Which keys and values each thread asks for before an attention: those of the items it is likely to take, in their order.
void Model::list_keys() {
  const int threads = pool_.threads(), group = config_.heads / config_.kv_heads, count = static_cast<int>(items_.size());
  for (int t = 0; t < threads; ++t) {
    KeysAhead& keys = scratch_[t]->keys;
    keys.layer = -1;
    keys.heads.clear();
    if (!groups_.empty()) continue;
    for (int i = count - 1 - t; i >= 0; i -= threads) {
      const Item& item = items_[i];
      const std::int32_t* blocks = (*sequences_)[item.sequence].blocks;
      for (int b = 0; b <= row_position_[item.row] / kTile; ++b) keys.heads.emplace_back(blocks[b], item.head / group);
    }
    keys.most = static_cast<int>(std::min(keys.heads.size(), kKeysAheadBytes / kv_head_));
  }
}

void Model::ask_for_keys(int thread, int layer) {
  const Layer &before = layers_[layer - 1], &now = layers_[layer];
  const int tiles = all_.down.tiles(), parts = (tiles + kTilesAtOnce - 1) / kTilesAtOnce;
  const long panels = before.gate_up.panels() + before.down.panels() + now.qkv.panels();
  scratch_[thread]->keys.begin(layer, panels * (tiles - parts) / pool_.threads());
}

// Groups of whole tiles, as many for each thread.
void Model::split(int count) {
  groups_.clear();
  if (count < kApartRows) return;
  const int threads = pool_.threads(), tall = kernels_.rows_best[static_cast<int>(config_.format)], tiles = (count + tall - 1) / tall;
  const int wanted = std::max(1, count / (kGroupRows * threads)) * threads, groups = std::min(wanted, tiles);
  for (int g = 0; g < groups; ++g) {
    const auto first = [&](int i) { return std::min(count, static_cast<int>(static_cast<std::int64_t>(tiles) * i / groups) * tall); };
    Group& group = groups_.emplace_back(first(g), first(g + 1) - first(g));
    items_of(all_rows_.data() + group.base, group.rows, false, group.items);
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
  const auto place = [&](Stage& stage, int rows, Lines<float>& x, Lines<float>& branch) {
    const std::size_t size = static_cast<std::size_t>(rows) * width_;
    stage.x = enough(x, size);
    if (config_.has_post_norms) stage.branch = enough(branch, size);
    stage.is_private = rows <= kPrivateRows && !config_.has_post_norms;
    shape(stage, rows, stage.is_private ? pool_.threads() : 1);
  };
  split(count);
  if (groups_.empty()) {
    place(all_, count, x_, branch_);
    items_of(all_rows_.data(), count, true, items_);
  } else {
    items_.clear();
    const std::size_t size = static_cast<std::size_t>(count) * width_;
    all_.x = enough(x_, size);
    if (config_.has_post_norms) all_.branch = enough(branch_, size);
  }
  if (logits_count) place(last_, logits_count, last_x_, last_branch_);
  last_.rows = logits_count;
  items_of(logits_rows, logits_count, true, last_items_);
  list_keys();
  enough(queries_, static_cast<std::size_t>(count) * attention_);
  enough(attention_out_, static_cast<std::size_t>(count) * attention_);
  for (std::size_t r = 0; r < rotations_.size(); ++r)
    enough(rotations_[r], static_cast<std::size_t>(count) * 2 * config_.rotary_frequencies[r].size());
  lap_start_ = now();
  pool_.run([this](int thread) { pass(thread); });
  if (likeliest_) join_likeliest();
}

void Model::pass(int thread) {
  Crew all(pool_);
  if (groups_.empty())
    together(thread);
  else
    apart(thread);
  if (!last_.rows) return;
  after(all, thread, config_.layers - 1, last_, last_items_);
  const Activations& in = normed(all, thread, last_, last_.final, output_norm_, layers_.back().ffn_post_norm);
  lap(thread, kNorm);
  head(all, thread, in);
  pool_.barrier();
  lap(thread, kHead);
}

// All layers up to the last one's keys and values, all threads in each phase.
void Model::together(int thread) {
  Crew all(pool_);
  embed(all, all_);
  all.meet();
  lap(thread, kEmbed);
  for (int l = 0; l < config_.layers; ++l) {
    if (l) after(all, thread, l - 1, all_, items_);
    before(all, thread, l, all_);
  }
}

// The same, a group of rows after the other from one layer's keys and values to the next one's. Each thread takes the
// groups it had in the layer before, then those that nobody has begun: one that is held up does less.
void Model::apart(int thread) {
  Stage& stage = scratch_[thread]->group;
  stage.is_private = true;
  const int count = static_cast<int>(groups_.size()), threads = pool_.threads();
  for (int l = 0; l < config_.layers; ++l) {
    for (int turn = 0; turn < 2 * count; ++turn) {
      // Later rows see more keys: they come first, and each thread gets as many early ones as late ones.
      const int g = count - 1 - turn % count, row = g / threads, owner = row % 2 ? g % threads : threads - 1 - g % threads;
      if (turn < count && owner != thread) continue;
      Group& group = groups_[g];
      int taken = l;
      if (!group.layers.compare_exchange_strong(taken, l + 1, std::memory_order_relaxed)) continue;
      Crew alone;
      stage.base = group.base;
      stage.x = all_.x + static_cast<std::size_t>(group.base) * width_;
      if (config_.has_post_norms) stage.branch = all_.branch + static_cast<std::size_t>(group.base) * width_;
      shape(stage, group.rows, 1);
      if (l) {
        after(alone, thread, l - 1, stage, group.items);
      } else {
        embed(alone, stage);
        alone.meet();
        lap(thread, kEmbed);
      }
      before(alone, thread, l, stage);
    }
    pool_.barrier();
    lap(thread, kWait);
  }
}

void Model::before(Crew& crew, int thread, int index, Stage& stage) {
  const Layer& layer = layers_[index];
  const Activations& in = normed(crew, thread, stage, stage.normed, layer.attention_norm, index ? layers_[index - 1].ffn_post_norm : nullptr);
  lap(thread, kNorm);
  qkv(crew, thread, layer, index, in, stage.base);
  crew.meet();
  lap(thread, kQkv);
}

void Model::after(Crew& crew, int thread, int index, Stage& stage, const std::vector<Item>& items) {
  const Layer& layer = layers_[index];
  scratch_[thread]->keys.layer = -1;
  attend(crew, thread, layer, index, items);
  crew.meet();
  lap(thread, kAttend);
  const Activations& heads = attended(crew, thread, stage);
  lap(thread, kNorm);
  project(crew, thread, layer.o, heads, stage);
  crew.meet();
  lap(thread, kProject);
  const Activations& middle = normed(crew, thread, stage, stage.normed, layer.ffn_norm, layer.attention_post_norm);
  lap(thread, kNorm);
  if (&stage == &all_) ask_for_keys(thread, index + 1);
  feed(crew, thread, layer, middle, stage);
  crew.meet();
  lap(thread, kFeed);
  project(crew, thread, layer.down, stage.down, stage);
  crew.meet();
  lap(thread, kDown);
}

}  // namespace farthing
