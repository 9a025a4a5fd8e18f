// The door between Python and the native core: every argument is checked here, once, before memory is touched.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "huge.h"
#include "model.h"
#include "pack.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace farthing {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

Format format_of(const std::string& name) {
  if (name == "f32") return Format::f32;
  if (name == "q8") return Format::q8;
  if (name == "q4") return Format::q4;
  if (name == "q4_0") return Format::q4_0;
  refuse("weights `" + name + "`: must be f32, q8, q4 or q4_0");
}

KvFormat kv_of(const std::string& name) {
  if (name == "f32") return KvFormat::f32;
  if (name == "bf16") return KvFormat::bf16;
  if (name == "int8") return KvFormat::int8;
  refuse("kv `" + name + "`: must be f32, bf16 or int8");
}

int between(const nb::dict& config, const char* name, int low, int high) {
  const auto value = nb::cast<std::int64_t>(config[name]);
  if (value < low || value > high)
    refuse(std::string(name) + " is " + std::to_string(value) + "; must be " + std::to_string(low) + " to " + std::to_string(high));
  return static_cast<int>(value);
}

Config config_of(const nb::dict& d) {
  constexpr int kMost = 1 << 24;
  Config c{};
  c.vocabulary = between(d, "vocabulary", 1, kMost);
  c.layers = between(d, "layers", 1, 4096);
  c.width = between(d, "width", 1, 1 << 18);
  c.heads = between(d, "heads", 1, 4096);
  c.kv_heads = between(d, "kv_heads", 1, 4096);
  c.head_size = between(d, "head_size", 2, 1024);
  c.ffn_width = between(d, "ffn_width", 1, 1 << 20);
  if (c.heads % c.kv_heads) refuse("heads must be a multiple of kv_heads");
  c.norm_epsilon = nb::cast<float>(d["norm_epsilon"]);
  c.attention_scale = nb::cast<float>(d["attention_scale"]);
  c.attention_soft_cap = nb::cast<float>(d["attention_soft_cap"]);
  c.logit_soft_cap = nb::cast<float>(d["logit_soft_cap"]);
  c.embedding_scale = nb::cast<float>(d["embedding_scale"]);
  const auto gate = nb::cast<std::string>(d["gate"]);
  if (gate != "silu" && gate != "gelu_tanh") refuse("gate `" + gate + "`: must be silu or gelu_tanh");
  c.gate = gate == "silu" ? Gate::silu : Gate::gelu_tanh;
  c.has_qkv_bias = nb::cast<bool>(d["has_qkv_bias"]);
  c.has_qk_norm = nb::cast<bool>(d["has_qk_norm"]);
  c.has_post_norms = nb::cast<bool>(d["has_post_norms"]);
  c.rotary_frequencies = nb::cast<std::vector<std::vector<double>>>(d["rotary_frequencies"]);
  c.rotary_factors = nb::cast<std::vector<double>>(d["rotary_factors"]);
  c.rotary_of_layer = nb::cast<std::vector<int>>(d["rotary_of_layer"]);
  c.window_of_layer = nb::cast<std::vector<int>>(d["window_of_layer"]);
  const auto layers = static_cast<std::size_t>(c.layers);
  if (c.rotary_of_layer.size() != layers || c.window_of_layer.size() != layers)
    refuse("rotary_of_layer and window_of_layer must have an entry for each layer");
  if (c.rotary_factors.size() != c.rotary_frequencies.size()) refuse("each rotary must have a factor");
  for (const auto& frequencies : c.rotary_frequencies)
    if (2 * frequencies.size() > static_cast<std::size_t>(c.head_size)) refuse("a rotary turns more than a head has");
  for (const int r : c.rotary_of_layer)
    if (r < 0 || static_cast<std::size_t>(r) >= c.rotary_frequencies.size()) refuse("rotary_of_layer names no rotary");
  for (const int w : c.window_of_layer)
    if (w < 0) refuse("a window is negative");
  c.format = format_of(nb::cast<std::string>(d["format"]));
  c.head_format = format_of(nb::cast<std::string>(d["head_format"]));
  for (const auto& [name, format] : nb::cast<nb::dict>(d["formats"])) {
    const Format own = format_of(nb::cast<std::string>(format));
    if ((own == Format::f32) != (c.format == Format::f32)) refuse("matrices must all be f32, or none");
    c.formats.emplace(nb::cast<std::string>(name), own);
  }
  if ((c.format == Format::f32) != (c.head_format == Format::f32)) refuse("head and layers must both be f32, or neither");
  c.embedding_is_f32 = nb::cast<bool>(d["embedding_is_f32"]);
  c.width_block = between(d, "width_block", kTile, 1 << 16);
  c.attention_block = between(d, "attention_block", kTile, 1 << 16);
  c.ffn_block = between(d, "ffn_block", kTile, 1 << 16);
  c.width_part = between(d, "width_part", kTile, 1 << 16);
  c.attention_part = between(d, "attention_part", kTile, 1 << 16);
  c.ffn_part = between(d, "ffn_part", kTile, 1 << 16);
  c.head_part = between(d, "head_part", kTile, 1 << 16);
  for (const auto& [block, part] : {std::pair{c.width_block, c.width_part}, std::pair{c.width_block, c.head_part},
                                   std::pair{c.attention_block, c.attention_part}, std::pair{c.ffn_block, c.ffn_part}})
    if (part % kTile || block % part) refuse("a part must be a multiple of 32, a block of its part");
  return c;
}

// Memory for logits that comes back when its array dies: fresh megabytes each step would be zeroed page by page.
class LogitsPool {
 public:
  struct Memory {
    std::unique_ptr<float[]> floats;
    std::size_t size = 0;
  };
  class Lent {
   public:
    Lent(std::shared_ptr<LogitsPool> pool, Memory memory) : pool_(std::move(pool)), memory_(std::move(memory)) {}
    Lent(Lent&&) = default;
    ~Lent() {
      if (pool_) pool_->back(std::move(memory_));
    }
    float* get() const { return memory_.floats.get(); }

   private:
    std::shared_ptr<LogitsPool> pool_;
    Memory memory_;
  };

  static Lent lend(const std::shared_ptr<LogitsPool>& pool, std::size_t size) {
    {
      const std::lock_guard<std::mutex> guard(pool->mutex_);
      if (pool->kept_.size >= size) return {pool, std::exchange(pool->kept_, {})};
    }
    return {pool, {std::unique_ptr<float[]>(new float[size ? size : 1]), size}};
  }

 private:
  void back(Memory memory) {
    constexpr std::size_t kMost = std::size_t{8} << 20;  // of numbers: more than that are a whole prompt's
    const std::lock_guard<std::mutex> guard(mutex_);
    if (memory.size > kept_.size && memory.size <= kMost) std::swap(kept_, memory);
  }

  std::mutex mutex_;
  Memory kept_;
};

// What Python holds: the model, and the array its weights lie in. One call at a time computes, others wait; a call that
// is under way keeps both alive whatever the owner does.
class Runner {
 public:
  Runner(const nb::dict& config, Bytes weights, const nb::dict& offsets, const std::string& kv, int blocks, int threads)
      : weights_(weights) {
    if (blocks < 1 || blocks > 1 << 26) refuse("blocks is " + std::to_string(blocks) + "; must be 1 to 67108864");
    if (threads < 1 || threads > 1024) refuse("threads is " + std::to_string(threads) + "; must be 1 to 1024");
    Weights w{weights.data(), weights.size(), {}};
    if (reinterpret_cast<std::uintptr_t>(w.bytes) % 64) refuse("weights must lie at a multiple of 64 bytes");
    for (const auto& [name, offset] : offsets) w.offsets.emplace(nb::cast<std::string>(name), nb::cast<std::size_t>(offset));
    model_ = std::make_shared<Model>(config_of(config), w, kv_of(kv), blocks, threads);
  }

  nb::object run(Ints tokens, const nb::sequence& sequences, Ints logits_rows) {
    const std::shared_ptr<Model> model = open();
    const std::size_t vocabulary = model->config().vocabulary;
    LogitsPool::Lent logits = LogitsPool::lend(logits_, logits_rows.size() * vocabulary);
    compute(*model, tokens, sequences, logits_rows, logits.get(), nullptr);
    float* data = logits.get();
    nb::capsule owner(new LogitsPool::Lent(std::move(logits)), [](void* p) noexcept { delete static_cast<LogitsPool::Lent*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {logits_rows.size(), vocabulary}, owner));
  }

  // The largest logit of each wanted row, and its token.
  std::pair<std::vector<std::int32_t>, std::vector<float>> run_likeliest(Ints tokens, const nb::sequence& sequences, Ints logits_rows) {
    const std::shared_ptr<Model> model = open();
    std::vector<Likeliest> found(logits_rows.size());
    compute(*model, tokens, sequences, logits_rows, nullptr, found.data());
    std::pair<std::vector<std::int32_t>, std::vector<float>> result;
    for (const Likeliest& one : found) {
      result.first.push_back(one.token);
      result.second.push_back(one.logit);
    }
    return result;
  }

  void copy_block(int source, int target) {
    const std::shared_ptr<Model> model = open();
    for (const int block : {source, target})
      if (block < 0 || block >= model->blocks())
        refuse("block " + std::to_string(block) + " is not one of " + std::to_string(model->blocks()));
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(turn_);
    model->copy_block(source, target);
  }

  std::vector<std::pair<std::string, double>> take_profile() {
    const std::shared_ptr<Model> model = open();
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(turn_);
    return model->take_profile();
  }

  std::size_t kv_bytes() { return open()->kv_bytes(); }
  std::size_t populated_blocks() { return open()->populated(); }
  std::string isa() { return open()->kernels().name; }

  void close() {
    model_.reset();
    weights_ = {};
  }

 private:
  void compute(Model& m, const Ints& tokens, const nb::sequence& sequences, const Ints& logits_rows, float* logits, Likeliest* likeliest) {
    const Bytes weights = weights_;
    const Config& c = m.config();
    const auto count = tokens.size();
    if (count < 1 || count > 1 << 20) refuse("a step must have 1 to 1048576 rows, not " + std::to_string(count));
    for (std::size_t i = 0; i < count; ++i)
      if (tokens.data()[i] < 0 || tokens.data()[i] >= c.vocabulary)
        refuse("token " + std::to_string(tokens.data()[i]) + " of row " + std::to_string(i) + " is outside of the vocabulary");
    std::vector<Rows> rows;
    std::vector<Ints> tables;  // keeps them alive while we run
    std::size_t total = 0;
    for (const nb::handle item : sequences) {
      const auto [n, start, table] = nb::cast<std::tuple<std::int64_t, std::int64_t, nb::object>>(item);
      const auto blocks = nb::cast<Ints>(table, false);
      const std::string name = "sequence " + std::to_string(rows.size());
      if (n < 1 || start < 0 || start + n > 1 << 30) refuse(name + ": rows must be at least 1 and start at least 0");
      const std::int64_t need = (start + n + kTile - 1) / kTile;
      if (static_cast<std::int64_t>(blocks.size()) < need)
        refuse(name + ": " + std::to_string(blocks.size()) + " blocks do not hold " + std::to_string(start + n) + " positions");
      for (std::int64_t i = 0; i < need; ++i)
        if (blocks.data()[i] < 0 || blocks.data()[i] >= m.blocks())
          refuse(name + ": block " + std::to_string(blocks.data()[i]) + " is not one of " + std::to_string(m.blocks()));
      total += n;
      if (total > count) break;
      rows.push_back({static_cast<int>(n), static_cast<int>(start), blocks.data()});
      tables.push_back(blocks);
    }
    if (total != count)
      refuse("sequences have " + std::to_string(total) + " rows, tokens " + std::to_string(count));
    const auto wanted = logits_rows.size();
    for (std::size_t i = 0; i < wanted; ++i) {
      const std::int32_t row = logits_rows.data()[i];
      if (row < 0 || static_cast<std::size_t>(row) >= count || (i && row <= logits_rows.data()[i - 1]))
        refuse("logits_rows must ascend and name rows of the step");
    }
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(turn_);
    m.run(tokens.data(), static_cast<int>(count), rows, logits_rows.data(), static_cast<int>(wanted), logits, likeliest);
  }

  std::shared_ptr<Model> open() {
    if (!model_) throw std::runtime_error("the runner is closed");
    return model_;
  }

  Bytes weights_;
  std::shared_ptr<Model> model_;
  std::shared_ptr<LogitsPool> logits_ = std::make_shared<LogitsPool>();
  std::mutex turn_;
};

using Ids = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// What farthing.llm.sampler.Sampling says, with the arrays it lends.
struct Drawing {
  Draw draw;
  Ids bias_ids, prompt_ids;
  Values bias_values;
  Bits mask;
};

std::int32_t token_of(std::int64_t id, std::size_t vocabulary) {
  if (id < 0 || static_cast<std::uint64_t>(id) >= vocabulary) refuse("token " + std::to_string(id) + " is outside of the vocabulary");
  return static_cast<std::int32_t>(id);
}

Drawing drawing_of(nb::handle sampling, const float* row, std::size_t vocabulary, std::int64_t position, const nb::sequence& banned,
                   nb::handle mask) {
  Drawing d;
  Draw& draw = d.draw;
  draw.logits = row;
  draw.temperature = nb::cast<double>(sampling.attr("temperature"));
  draw.top_p = nb::cast<double>(sampling.attr("top_p"));
  draw.min_p = nb::cast<double>(sampling.attr("min_p"));
  draw.top_k = nb::cast<std::int64_t>(sampling.attr("top_k"));
  if (std::isnan(draw.temperature) || std::isnan(draw.top_p) || std::isnan(draw.min_p)) refuse("a sampling parameter is not a number");
  if (draw.temperature > 0) {
    draw.seed = nb::cast<std::uint64_t>(sampling.attr("seed").attr("__and__")(~std::uint64_t{0}));
    draw.choice = static_cast<std::uint32_t>(nb::cast<std::int64_t>(sampling.attr("choice")));
    draw.position = static_cast<std::uint32_t>(position);
  }
  d.bias_ids = nb::cast<Ids>(sampling.attr("bias_ids"));
  d.bias_values = nb::cast<Values>(sampling.attr("bias_values"));
  if (d.bias_ids.size() != d.bias_values.size()) refuse("each bias needs a token");
  for (std::size_t i = 0; i < d.bias_ids.size(); ++i) token_of(d.bias_ids.data()[i], vocabulary);
  draw.bias_ids = d.bias_ids.data();
  draw.bias_values = d.bias_values.data();
  draw.biases = d.bias_ids.size();
  if (!mask.is_none()) {
    d.mask = nb::cast<Bits>(mask);
    if (d.mask.size() < (vocabulary + 31) / 32) refuse("a mask needs a bit for each token");
    draw.mask = d.mask.data();
  }
  for (const nb::handle id : banned) draw.banned.push_back(token_of(nb::cast<std::int64_t>(id), vocabulary));
  if (nb::cast<bool>(sampling.attr("has_penalties"))) {
    draw.repetition_penalty = nb::cast<float>(sampling.attr("repetition_penalty"));
    draw.presence_penalty = nb::cast<float>(sampling.attr("presence_penalty"));
    draw.frequency_penalty = nb::cast<float>(sampling.attr("frequency_penalty"));
    d.prompt_ids = nb::cast<Ids>(sampling.attr("prompt_ids"));
    for (std::size_t i = 0; i < d.prompt_ids.size(); ++i) token_of(d.prompt_ids.data()[i], vocabulary);
    draw.prompt_ids = d.prompt_ids.data();
    draw.prompt = d.prompt_ids.size();
    for (const auto& [id, count] : nb::cast<nb::dict>(sampling.attr("counts"))) {
      draw.generated.push_back(token_of(nb::cast<std::int64_t>(id), vocabulary));
      draw.counts.push_back(nb::cast<float>(count));
    }
  }
  return d;
}

std::size_t row_of(const Floats& logits, std::int64_t row) {
  if (row < 0 || static_cast<std::uint64_t>(row) >= logits.shape(0)) refuse("there is no row " + std::to_string(row) + " of logits");
  return static_cast<std::size_t>(row) * logits.shape(1);
}

std::vector<std::int32_t> sample_rows(Floats logits, const nb::sequence& draws) {
  const std::size_t vocabulary = logits.shape(1);
  if (vocabulary < 1 || vocabulary > std::size_t{1} << 24) refuse("a row of logits must have 1 to 16777216");
  std::vector<Drawing> all;
  for (const nb::handle item : draws) {
    const auto [row, sampling, position, banned, mask] =
        nb::cast<std::tuple<std::int64_t, nb::object, std::int64_t, nb::sequence, nb::object>>(item);
    all.push_back(drawing_of(sampling, logits.data() + row_of(logits, row), vocabulary, position, banned, mask));
  }
  std::vector<std::int32_t> tokens;
  nb::gil_scoped_release released;
  const Kernels& k = kernels();
  std::vector<float> scratch;
  for (const Drawing& one : all) tokens.push_back(sample(k, one.draw, vocabulary, scratch));
  return tokens;
}

std::vector<std::tuple<double, std::vector<std::int32_t>, std::vector<double>>> likelihoods(
    Floats logits, const std::vector<std::int64_t>& rows, const std::vector<std::int64_t>& tokens, std::int64_t top) {
  const std::size_t vocabulary = logits.shape(1);
  if (vocabulary < 1 || rows.size() != tokens.size()) refuse("each row needs its token");
  if (top < 0 || top > 1 << 20) refuse("top must be 0 to 1048576");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    row_of(logits, rows[i]);
    token_of(tokens[i], vocabulary);
  }
  std::vector<std::tuple<double, std::vector<std::int32_t>, std::vector<double>>> result;
  nb::gil_scoped_release released;
  const Kernels& k = kernels();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Likelihood one = likelihood(k, logits.data() + rows[i] * vocabulary, vocabulary, static_cast<std::int32_t>(tokens[i]),
                                static_cast<std::size_t>(top));
    result.emplace_back(one.logprob, std::move(one.ids), std::move(one.logprobs));
  }
  return result;
}

struct Shape {
  Format format;
  std::size_t outputs, inputs, block;
};

Shape shape_of(const std::string& format, std::int64_t outputs, std::int64_t inputs, std::int64_t block) {
  constexpr std::int64_t kMost = 1 << 26;
  if (outputs < kTile || outputs > kMost || outputs % kTile || inputs < kTile || inputs > kMost || block < kTile ||
      block % kTile || inputs % block)
    refuse("outputs must be a multiple of 32, inputs of block, block of 32");
  return {format_of(format), static_cast<std::size_t>(outputs), static_cast<std::size_t>(inputs), static_cast<std::size_t>(block)};
}

std::size_t matrix_bytes(const std::string& format, std::int64_t outputs, std::int64_t inputs, std::int64_t block) {
  const Shape s = shape_of(format, outputs, inputs, block);
  return panel_bytes(s.format, s.inputs, s.block) * (s.outputs / kTile);
}

void check_packed(const MutableBytes& out, const Shape& s, const Ints* to, std::size_t rows) {
  if (out.size() != panel_bytes(s.format, s.inputs, s.block) * (s.outputs / kTile)) refuse("out has not the size of the matrix");
  if (!to) return;
  if (to->size() != rows) refuse("each row needs the output it goes to");
  for (std::size_t i = 0; i < rows; ++i)
    if (to->data()[i] < 0 || static_cast<std::size_t>(to->data()[i]) >= s.outputs) refuse("a row goes to no output");
}

void check_threads(int threads) {
  if (threads < 1 || threads > 1024) refuse("threads must be 1 to 1024");
}

}  // namespace
}  // namespace farthing

NB_MODULE(_native, m) {
  using namespace farthing;
  m.doc() = "The native core: packed weights, the forward pass, the sampler.";
  m.attr("TILE") = kTile;
  nb::set_leak_warnings(false);  // who ends the process in mid-step, by a signal or in an interactive session, holds a runner

  nb::class_<Runner>(m, "Runner")
      .def(nb::init<const nb::dict&, Bytes, const nb::dict&, const std::string&, int, int>(), "config"_a, "weights"_a.noconvert(),
           "offsets"_a, nb::kw_only(), "kv"_a, "blocks"_a, "threads"_a)
      .def("run", &Runner::run, "tokens"_a.noconvert(), "sequences"_a, "logits_rows"_a.noconvert())
      .def("run_likeliest", &Runner::run_likeliest, "tokens"_a.noconvert(), "sequences"_a, "logits_rows"_a.noconvert())
      .def("copy_block", &Runner::copy_block, "source"_a, "target"_a)
      .def("take_profile", &Runner::take_profile)
      .def_prop_ro("kv_bytes", &Runner::kv_bytes)
      .def_prop_ro("populated_blocks", &Runner::populated_blocks)
      .def_prop_ro("isa", &Runner::isa)
      .def("close", &Runner::close);

  m.def("isa", [] { return std::string(kernels().name); }, "The instruction set the kernels will use.");
  m.def("has_wide_rows", [] { return kernels().is_wide; },
        "Whether activations of 8-bit layers have 16 bits: parts may be as large as blocks, and blocks larger.");
  m.def("rows_max", [](const std::string& mode) { return kernels().rows_max[static_cast<int>(format_of(mode))]; }, "mode"_a,
        "Rows of its tallest tile of a linear layer.");
  m.def("matrix_bytes", &matrix_bytes, "mode"_a, "outputs"_a, "inputs"_a, "block"_a);
  m.def(
      "pack_nothing",
      [](const std::string& format, MutableBytes out, std::int64_t outputs, std::int64_t inputs, std::int64_t block) {
        const Shape s = shape_of(format, outputs, inputs, block);
        check_packed(out, s, nullptr, 0);
        nb::gil_scoped_release released;
        pack_nothing(s.format, out.data(), s.outputs, s.inputs, s.block);
      },
      "mode"_a, "out"_a.noconvert(), "outputs"_a, "inputs"_a, "block"_a);
  m.def(
      "pack_rows",
      [](const std::string& format, Floats rows, Ints to, MutableBytes out, std::int64_t outputs, std::int64_t inputs,
         std::int64_t block, int threads) {
        const Shape s = shape_of(format, outputs, inputs, block);
        check_packed(out, s, &to, rows.shape(0));
        check_threads(threads);
        if (s.format == Format::q4_0) refuse("q4_0 is made of blocks, not of rows");
        if (rows.shape(1) < 1 || rows.shape(1) > s.inputs) refuse("rows are longer than the matrix has inputs");
        nb::gil_scoped_release released;
        pack_rows(s.format, rows.data(), rows.shape(0), rows.shape(1), to.data(), out.data(), s.inputs, s.block, threads);
      },
      "mode"_a, "rows"_a.noconvert(), "to"_a.noconvert(), "out"_a.noconvert(), "outputs"_a, "inputs"_a, "block"_a, "threads"_a);
  m.def(
      "pack_q4_blocks",
      [](const std::string& mode, const std::string& kind, Bytes rows, Ints to, MutableBytes out, std::int64_t outputs, std::int64_t inputs, int threads) {
        if (kind != "Q4_0" && kind != "Q4_1") refuse("kind `" + kind + "`: must be Q4_0 or Q4_1");
        const Shape s = shape_of(mode, outputs, inputs, kQ4Block);
        if (s.format != Format::q4 && (s.format != Format::q4_0 || kind != "Q4_0")) refuse(kind + " does not go into " + mode);
        const std::size_t bytes = s.inputs / kQ4Block * (kind == "Q4_1" ? 20 : 18);
        if (rows.size() % bytes) refuse("rows are not whole");
        check_packed(out, s, &to, rows.size() / bytes);
        check_threads(threads);
        nb::gil_scoped_release released;
        pack_q4_blocks(s.format, kind == "Q4_1", rows.data(), rows.size() / bytes, s.inputs, to.data(), out.data(), threads);
      },
      "mode"_a, "kind"_a, "rows"_a.noconvert(), "to"_a.noconvert(), "out"_a.noconvert(), "outputs"_a, "inputs"_a, "threads"_a);
  m.def(
      "checksum",
      [](Bytes bytes, int threads) {
        check_threads(threads);
        nb::gil_scoped_release released;
        return checksum(bytes.data(), bytes.size(), threads);
      },
      "data"_a.noconvert(), "threads"_a);
  m.def(
      "into_huge_pages",
      [](Bytes bytes) {
        nb::gil_scoped_release released;
        return into_huge_pages(bytes.data(), bytes.size());
      },
      "data"_a.noconvert(), "Moves memory that is only read into huge pages, where it lies; returns the bytes that were moved.");
  m.def("sample", &sample_rows, "logits"_a.noconvert(), "draws"_a,
        "The next token for each (row of logits, Sampling, position, tokens that may not come, mask of those that may or None).");
  m.def("likelihoods", &likelihoods, "logits"_a.noconvert(), "rows"_a, "tokens"_a, "top"_a,
        "For each row: its token's log-probability, and ids and log-probabilities of the likeliest.");
  m.def(
      "linear",
      [](const std::string& format, Floats rows, Bytes packed, std::int64_t outputs, std::int64_t inputs, std::int64_t block,
         std::int64_t part, int rows_max) {
        const Shape s = shape_of(format, outputs, inputs, block);
        if (packed.size() != panel_bytes(s.format, s.inputs, s.block) * (s.outputs / kTile)) refuse("packed has not the size of the matrix");
        if (rows.shape(1) != s.inputs || rows.shape(0) < 1 || rows.shape(0) > 1 << 20) refuse("rows must be 1 to 1048576 of `inputs` each");
        if (part < kTile || part % kTile || s.block % part) refuse("part must be a multiple of 32, block of part");
        const Kernels& k = kernels();
        const int most = k.rows_max[static_cast<int>(s.format)];
        if (rows_max < 1 || rows_max > most) refuse("rows_max must be 1 to " + std::to_string(most));
        const std::size_t count = rows.shape(0);
        Activations in;
        in.shape(k, static_cast<int>(count), rows_max, static_cast<int>(s.inputs), static_cast<int>(part), s.format);
        for (int t = 0; t < in.tiles(); ++t)
          for (int r = in.first(t); r < in.first(t + 1); ++r) in.put(k, t, r, rows.data() + r * s.inputs, 0, static_cast<int>(s.inputs));
        float* out = new float[count * s.outputs];
        nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        const std::size_t panel = panel_bytes(s.format, s.inputs, s.block);
        std::vector<LinearArgs> tiles(in.tiles());
        for (std::size_t p = 0; p < s.outputs / kTile; ++p) {
          for (int t = 0; t < in.tiles(); ++t)
            tiles[t] = {packed.data() + p * panel, in.tile(t), in.rows(t), static_cast<int>(s.inputs), static_cast<int>(s.block), static_cast<int>(part),
                        out + in.first(t) * s.outputs + p * kTile, static_cast<std::ptrdiff_t>(s.outputs)};
          k.linear(s.format, tiles.data(), in.tiles());
        }
        return nb::ndarray<nb::numpy, float, nb::ndim<2>>(out, {count, s.outputs}, owner);
      },
      "mode"_a, "rows"_a.noconvert(), "packed"_a.noconvert(), "outputs"_a, "inputs"_a, "block"_a, "part"_a, "rows_max"_a,
      "One linear layer on one thread, in tiles of up to rows_max: what tests hold against a plain product.");
  m.def(
      "read_rate",
      [](Bytes bytes, int threads, int rounds) {
        check_threads(threads);
        if (rounds < 1 || rounds > 1000) refuse("rounds must be 1 to 1000");
        nb::gil_scoped_release released;
        const Kernels& k = kernels();
        const std::size_t part = bytes.size() / threads / 4096 * 4096;
        std::vector<std::thread> workers;
        const auto begin = std::chrono::steady_clock::now();
        for (int t = 0; t < threads; ++t)
          workers.emplace_back([&, t] { for (int r = 0; r < rounds; ++r) k.read(bytes.data() + t * part, part); });
        for (auto& w : workers) w.join();
        return static_cast<double>(part * threads) * rounds / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      },
      "data"_a.noconvert(), "threads"_a, "rounds"_a, "Bytes a second that a plain read of `bytes` reaches.");
  m.def(
      "operation_rate",
      [](int threads, double seconds) {
        check_threads(threads);
        if (!(seconds > 0 && seconds <= 10)) refuse("seconds must be above 0 and at most 10");
        nb::gil_scoped_release released;
        const Kernels& k = kernels();
        const auto timed = [&](int count, long rounds) {
          std::atomic<std::int64_t> keep{0};
          std::vector<std::thread> workers;
          const auto begin = std::chrono::steady_clock::now();
          for (int t = 0; t < count; ++t) workers.emplace_back([&] { keep += k.operations(rounds); });
          for (auto& w : workers) w.join();
          const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
          return static_cast<double>(rounds) * static_cast<double>(k.operations_a_round) * count / took;
        };
        const double first = timed(1, 1 << 20);
        return timed(threads, static_cast<long>(first * seconds / static_cast<double>(k.operations_a_round)) + 1);
      },
      "threads"_a, "seconds"_a, "Int8 operations a second from registers alone: the limit of the linear kernels.");
}
