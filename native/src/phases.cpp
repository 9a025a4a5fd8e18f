// What threads do between two barriers: the phases of a layer, each shared out item by item. Their order is pass.cpp's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "scratch.h"

namespace farthing {
namespace {

// Pieces of work that each thread has in a phase of many rows, at least: the last one is what others wait for.
constexpr int kPiecesEach = 24;

}  // namespace

// Ends a phase of a stage.
void Model::meet(Stage& stage) {
  stage.next = 0;
  if (!stage.is_own) pool_.barrier();
}

void Model::embed(Stage& stage) {
  for (int i; (i = take(stage)) < stage.rows;) {
    const int row = stage.step_rows[i];
    float* x = stage.x + static_cast<std::size_t>(row) * width_;
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
void Model::by_tiles(Stage& stage, Activations& out, const F& one) {
  if (stage.is_private || stage.is_own) {
    for (int tile = 0; tile < out.tiles(); ++tile)
      for (int row = out.first(tile); row < out.first(tile + 1); ++row) one(tile, row);
    return;
  }
  for (int tile; (tile = pool_.take()) < out.tiles();) {
    out.will_put(tile, 0, out.inputs());
    for (int row = out.first(tile); row < out.first(tile + 1); ++row) one(tile, row);
  }
  meet(stage);
}

// The rows of a stage, normed and quantised; first adds the branch that a post norm waits for. Ends with a barrier
// unless a thread did it for itself.
const Activations& Model::normed(int thread, Stage& stage, std::vector<Activations>& to, const float* norm,
                                 const float* post) {
  Activations& out = to[stage.is_private ? thread : 0];
  float* scratch = scratch_[thread]->row.data();
  const auto one = [&](int tile, int row) {
    float* x = stage.x + static_cast<std::size_t>(stage.places[row]) * width_;
    if (post) {
      kernels_.rms_norm(stage.branch + static_cast<std::size_t>(stage.places[row]) * width_, post, width_, config_.width,
                        config_.norm_epsilon, scratch);
      kernels_.add(scratch, width_, x);
    }
    kernels_.rms_norm(x, norm, width_, config_.width, config_.norm_epsilon, scratch);
    out.put(kernels_, tile, row, scratch, 0, width_);
  };
  by_tiles(stage, out, one);
  return out;
}

const Activations& Model::attended(int thread, Stage& stage) {
  Activations& out = stage.attended[stage.is_private ? thread : 0];
  const auto one = [&](int tile, int row) {
    out.put(kernels_, tile, row, attention_out_.data() + static_cast<std::size_t>(stage.places[row]) * attention_, 0, attention_);
  };
  by_tiles(stage, out, one);
  return out;
}

// What a thread takes of a phase's linear layers, piece by piece: one(item, first tile, end tile). Items lie side by side in a
// matrix, and each thread has those from bound(thread) on, so that what it asks for ahead, beyond a panel's end too, is its own
// next. Tiles of rows come in groups: of as many as go through a panel at once, or fewer, so that nobody waits long for the last
// piece.
template <class Bound, class F>
void Model::by_items(Stage& stage, int thread, int tiles, const Bound& bound, const F& one) {
  const int threads = pool_.threads(), items = bound(threads);
  int groups = (tiles + kTilesAtOnce - 1) / kTilesAtOnce;
  if (tiles >= kTilesAtOnce) groups = std::max(groups, std::min(tiles / 2, (kPiecesEach * threads + items - 1) / items));
  const auto next = [&] {
    return stage.is_own ? stage.next++ : pool_.take_near(thread, [&](int t) { return bound(t) * groups; });
  };
  for (int piece; (piece = next()) < items * groups;) {
    const int group = piece % groups;
    one(piece / groups, tiles * group / groups, tiles * (group + 1) / groups);
  }
}

// Where a thread's items of qkv begin: those of keys and values have twice the panels.
int Model::qkv_share(int thread) const {
  const int kv = config_.kv_heads, unit = share_of(thread, 2 * kv + config_.heads);
  return unit < 2 * kv ? (unit + 1) / 2 : unit - kv;
}

// Items: for each key-value head its keys and values together, then one a query head. Panels lie in that order.
void Model::qkv(int thread, const Layer& layer, int index, const Activations& in, Stage& stage) {
  Scratch& scratch = *scratch_[thread];
  const Config& c = config_;
  const int panels = head_size_ / kTile, pairs = static_cast<int>(c.rotary_frequencies[layer.rotary].size());
  by_items(stage, thread, in.tiles(), [this](int t) { return qkv_share(t); }, [&](int item, int t, int end) {
    const bool is_kv = item < c.kv_heads;
    const int first = is_kv ? item * 2 * panels : (2 * c.kv_heads + item - c.kv_heads) * panels;
    const int count = is_kv ? 2 * panels : panels, stride = count * kTile;
    const int rows = in.first(end) - in.first(t);
    float* tile = scratch.tile.data();
    if (!is_kv)
      for (int r = 0; r < rows; ++r) will_write(query_of(stage.step_rows[in.first(t) + r], item - c.kv_heads), head_size_ * sizeof(float));
    for (int p = 0; p < count; ++p)
      linear(scratch, layer.qkv, first + p, first + p + 1, in, t, end, tile + p * kTile, stride);
    for (int r = 0; r < rows; ++r) {
      const int row = stage.step_rows[in.first(t) + r];
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
  });
}

void Model::attend(int thread, const Layer& layer, int index, Stage& stage) {
  Scratch& scratch = *scratch_[thread];
  const std::vector<Item>& items = stage.items;
  const int group = config_.heads / config_.kv_heads, count = static_cast<int>(items.size());
  const bool is_last = &stage == &last_;
  const auto item_at = [&](int i) -> const Item& { return items[is_last ? i : count - 1 - i]; };  // later rows see more keys: longest first
  for (int i = take(stage), after; i < count + (is_last ? 1 : 0); i = after) {
    after = take(stage);  // known now, so that its keys can be asked for
    if (i == count) {  // after the last attention only some rows go on
      for (int r = 0; r < last_.rows; ++r)
        std::memcpy(last_.x + static_cast<std::size_t>(r) * width_,
                    all_.x + static_cast<std::size_t>(logits_rows_[r]) * width_, width_ * sizeof(float));
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
            kernels_.quantise_query(query, head_size_, head_size_,
                              {scratch.query.data() + column * kernels_.unit, 0, scales + column, offsets + column,
                               scratch.query_sums.data() + column, scratch.query_owed.data() + column, n});
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

// From here on, layers ask for the keys of the attention of `layer`.
void Model::begin_keys(int thread, int layer) {
  Scratch& scratch = *scratch_[thread];
  scratch.keys_asked = scratch.keys.size();
  if (layer == config_.layers || scratch.keys.empty()) return;
  int longest = 0;
  for (const Rows& rows : *sequences_) longest = std::max(longest, rows.start + rows.count);
  if (layers_[layer].window && layers_[layer].window < longest) return;  // which of them it sees, each row says
  scratch.keys_of = kv_at(layer, 0, 0);
  scratch.keys_asked = 0;
}

// The next blocks to ask for, as many as lie side by side in so many bytes; null: no more.
const std::uint8_t* Model::next_keys(Scratch& scratch, std::size_t bytes) const {
  const std::vector<std::int32_t>& keys = scratch.keys;
  std::size_t& i = scratch.keys_asked;
  if (i == keys.size()) return nullptr;
  const std::uint8_t* found = scratch.keys_of + keys[i++] * kv_block_;
  for (std::size_t asked = kv_block_; i < keys.size() && keys[i] == keys[i - 1] + 1 && asked + kv_block_ <= bytes; asked += kv_block_) ++i;
  return found;
}

// One panel times the tiles [first, end), rows one after another from `out` on. Meanwhile `ahead` is fetched, each tile's
// share of it: the panel that is likely to be this thread's next. A single tile is done before memory is: it asks for
// what comes a little later in its own panel. Several rows of one tile in 8 bits ask for nothing: what is asked for early
// is no longer missed, and from misses the processor learns to read ahead, which it does better than we can beside so much
// work.
template <class F>
void Model::linear(Scratch& scratch, const Matrix& m, int panel, int ahead, const Activations& in, int first, int end, const F& out_of,
                   int stride, bool adds) {
  LinearArgs tiles[kTilesAtOnce];
  const int count = end - first;
  const std::uint8_t *weights = m.at(panel), *asked = weights;
  int step = 0, tile_step = 0;
  if (count == 1) {
    const bool asks = m.format != Format::q8 || in.rows(first) == 1 || kernels_.is_wide;
    step = asks ? static_cast<int>(m.panel / m.steps) : 0;
    asked = weights + (!asks ? 0 : in.rows(first) <= 2 ? kernels_.ahead_few : kWeightsAhead);
  } else if (ahead < m.panels()) {
    step = static_cast<int>(m.panel) / (m.steps * count) + 1;
    tile_step = step * m.steps;
    asked = m.at(ahead);
  }
  for (int t = first; t < end; ++t, asked += tile_step)
    tiles[t - first] = {weights, in.tile(t), in.rows(t), m.inputs, m.block, in.part(), out_of(t), stride, adds, asked, step};
  if (count > 1 && scratch.keys_asked < scratch.keys.size()) {  // the first tile asks for all of the panel, others for keys
    constexpr int kAsked = 3 * 64;  // what 4-bit kernels ask for at a step
    tiles[0].ahead_step = step * count;
    for (int t = 1; t < count; ++t)
      if (const std::uint8_t* keys = next_keys(scratch, static_cast<std::size_t>(kAsked) * m.steps)) {
        tiles[t].ahead = keys;
        tiles[t].ahead_step = kAsked;
      }
  }
  kernels_.linear(m.format, tiles, count);
}

void Model::linear(Scratch& scratch, const Matrix& m, int panel, int ahead, const Activations& in, int first, int end, float* out, int stride) {
  const auto out_of = [&](int t) { return out + (in.first(t) - in.first(first)) * stride; };
  linear(scratch, m, panel, ahead, in, first, end, out_of, stride, false);
}

// x += matrix * in, or branch = matrix * in where a post norm comes between.
void Model::project(int thread, const Matrix& matrix, const Activations& in, Stage& stage) {
  float* to = config_.has_post_norms ? stage.branch : stage.x;
  by_items(stage, thread, in.tiles(), [&](int t) { return share_of(t, matrix.panels()); }, [&](int panel, int t, int end) {
    const auto out_of = [&](int tile) { return to + static_cast<std::size_t>(stage.places[in.first(tile)]) * width_ + panel * kTile; };
    linear(*scratch_[thread], matrix, panel, panel + 1, in, t, end, out_of, width_, !config_.has_post_norms);
  });
}

// An item is one block of `down`'s inputs: who computes it also quantises it.
void Model::feed(int thread, const Layer& layer, const Activations& in, Stage& stage) {
  Scratch& scratch = *scratch_[thread];
  const Matrix& m = layer.gate_up;
  const int block = layer.down.block, panels = block / (kTile / 2), items = layer.down.inputs / block;
  by_items(stage, thread, in.tiles(), [&](int t) { return share_of(t, items); }, [&](int item, int t, int end) {
    const int rows = in.first(end) - in.first(t);
    float *tile = scratch.tile.data(), *h = scratch.feed.data();
    for (int i = t; i < end; ++i) stage.down.will_put(i, item * block, block);
    for (int p = 0; p < panels; ++p) {
      linear(scratch, m, item * panels + p, item * panels + p + 1, in, t, end, tile, kTile);
      for (int r = 0; r < rows; ++r) kernels_.gate(config_.gate, tile + r * kTile, h + r * block + p * (kTile / 2));
    }
    for (int i = t; i < end; ++i)
      for (int row = in.first(i); row < in.first(i + 1); ++row)
        stage.down.put(kernels_, i, row, h + (row - in.first(t)) * block, item * block, block);
  });
}

void Model::head(int thread, const Activations& in) {
  Scratch& scratch = *scratch_[thread];
  float* tile = scratch.tile.data();
  const std::ptrdiff_t vocabulary = config_.vocabulary;
  if (likeliest_) scratch.likeliest.assign(last_.rows, {-std::numeric_limits<float>::infinity(), 0});
  by_items(last_, thread, in.tiles(), [&](int t) { return share_of(t, head_.panels()); }, [&](int panel, int t, int end) {
    const int first = in.first(t), rows = in.first(end) - first;
    linear(scratch, head_, panel, panel + 1, in, t, end, tile, kTile);
    if (config_.logit_soft_cap != 0) kernels_.soft_cap(config_.logit_soft_cap, rows * kTile, tile);
    const int columns = std::min<int>(kTile, config_.vocabulary - panel * kTile);
    for (int r = 0; r < rows; ++r) {
      const float* x = tile + r * kTile;
      if (logits_) std::memcpy(logits_ + (first + r) * vocabulary + panel * kTile, x, columns * sizeof(float));
      if (!likeliest_) continue;
      // What was another thread's comes late and from its end: of equals the first token stays all the same.
      Likeliest& best = scratch.likeliest[first + r];
      float border = best.token > panel * kTile ? std::nextafter(best.logit, -std::numeric_limits<float>::infinity()) : best.logit;
      const int at = kernels_.above(x, columns, &border);
      if (at >= 0) best = {border, panel * kTile + at};
    }
  });
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
