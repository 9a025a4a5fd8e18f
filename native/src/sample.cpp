#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace farthing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Likeliest tokens that are sorted first, and by how much more when a draw falls beyond them; as in the oracle.
constexpr std::size_t kCandidates = 256, kGrowth = 16;

struct Candidate {
  float value;
  std::int32_t id;
  bool operator<(const Candidate& other) const {  // the likelier first, equal ones by lower id
    return value > other.value || (value == other.value && id < other.id);
  }
};

// The `count` largest, in order. What is collected is cut to them whenever twice as many have come, which raises the
// border for the rest.
std::vector<Candidate> descending(const Kernels& kernels, const float* x, std::size_t size, std::size_t count) {
  constexpr int kRoom = 512;
  float values[kRoom];
  std::int32_t places[kRoom];
  std::vector<Candidate> found;
  found.reserve(std::min(2 * count, size) + kRoom);
  float border = -kInfinity;
  for (std::ptrdiff_t i = 0, end = static_cast<std::ptrdiff_t>(size); i < end;) {
    int more = 0;
    i = kernels.collect(x, i, end, border, kRoom, values, places, &more);
    for (int j = 0; j < more; ++j) found.push_back({values[j], places[j]});
    if (found.size() >= 2 * count) {
      std::nth_element(found.begin(), found.begin() + count - 1, found.end());
      found.resize(count);
      border = found[count - 1].value;  // an equal one further on has a higher id: it does not belong
    }
  }
  const std::size_t kept = std::min(count, found.size());
  std::partial_sort(found.begin(), found.begin() + kept, found.end());
  found.resize(kept);
  return found;
}

std::int32_t likeliest(const Kernels& kernels, const float* x, std::size_t size) {
  const auto best = descending(kernels, x, size, 1);
  if (!best.empty()) return best[0].id;
  const auto strange = std::find_if(x, x + size, [](float v) { return v != v; });  // as numpy: the first that is none
  return strange == x + size ? 0 : static_cast<std::int32_t>(strange - x);
}

std::int32_t pick(const Kernels& kernels, const Draw& draw, const float* x, std::size_t size) {
  const std::size_t kept_max = draw.top_k > 0 ? std::min<std::size_t>(draw.top_k, size) : size;
  std::size_t sorted_max = kept_max == size ? std::min(kept_max, kCandidates) : kept_max;
  const double random = uniform(draw.seed, draw.choice, draw.position);
  double whole = 0;
  for (;;) {
    const auto order = descending(kernels, x, size, sorted_max);
    if (order.empty() || !(order[0].value < kInfinity)) return likeliest(kernels, x, size);
    if (kept_max == size && whole == 0)
      whole = kernels.exp_sum(x, static_cast<std::ptrdiff_t>(size), order[0].value, static_cast<float>(1.0 / draw.temperature));
    std::vector<double> weights(order.size()), cumulative(order.size());
    const double highest = static_cast<double>(order[0].value) / draw.temperature;
    double sum = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      weights[i] = std::exp(static_cast<double>(order[i].value) / draw.temperature - highest);
      cumulative[i] = sum += weights[i];
    }
    const double total = whole != 0 ? whole : sum;
    const bool is_all = sorted_max == kept_max;
    std::size_t kept = order.size();
    if (draw.min_p > 0) {  // weights fall: the last that is at least min_p
      const auto end = std::partition_point(weights.begin(), weights.end(), [&](double w) { return w >= draw.min_p; });
      kept = std::max<std::size_t>(1, end - weights.begin());
    }
    if (draw.top_p < 1) {
      const auto nucleus = std::lower_bound(cumulative.begin(), cumulative.end(), draw.top_p * total);
      kept = std::min<std::size_t>(kept, nucleus - cumulative.begin() + 1);
    }
    const bool is_cut = kept < order.size();
    const double mass = is_cut || is_all ? cumulative[std::min(kept, order.size()) - 1] : total;
    const std::size_t chosen = std::upper_bound(cumulative.begin(), cumulative.end(), random * mass) - cumulative.begin();
    if (is_all || order.size() < sorted_max) return order[std::min({chosen, kept - 1, order.size() - 1})].id;
    const bool is_known = is_cut || (draw.min_p <= 0 && draw.top_p >= 1);
    if (is_known && chosen < std::min(kept, order.size())) return order[chosen].id;
    sorted_max = std::min(kept_max, sorted_max * kGrowth);
  }
}

}  // namespace

double uniform(std::uint64_t seed, std::uint32_t choice, std::uint32_t position) {
  std::uint32_t c[4] = {position, choice, 0, 0};
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0], b = std::uint64_t{0xCD9E8D57} * c[2];
    const std::uint32_t next[4] = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
                                   static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
    std::copy(next, next + 4, c);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return (c[0] >> 8) * 0x1p-24;
}

std::int32_t sample(const Kernels& kernels, const Draw& draw, std::size_t vocabulary, std::vector<float>& scratch) {
  const bool has_penalties = draw.repetition_penalty != 1 || draw.presence_penalty != 0 || draw.frequency_penalty != 0;
  const float* x = draw.logits;
  if (draw.biases || !draw.banned.empty() || draw.mask || has_penalties) {
    scratch.assign(x, x + vocabulary);
    for (std::size_t i = 0; i < draw.biases; ++i) scratch[draw.bias_ids[i]] += draw.bias_values[i];
    for (const std::int32_t id : draw.banned) scratch[id] = -kInfinity;
    if (draw.mask)
      for (std::size_t i = 0; i < vocabulary; i += 32) {
        const std::uint32_t may = draw.mask[i / 32];
        if (may == ~std::uint32_t{0}) continue;
        for (std::size_t j = i; j < std::min(i + 32, vocabulary); ++j)
          if (!(may >> (j - i) & 1)) scratch[j] = -kInfinity;
      }
    if (draw.repetition_penalty != 1) {
      std::vector<std::int32_t> seen(draw.prompt_ids, draw.prompt_ids + draw.prompt);
      seen.insert(seen.end(), draw.generated.begin(), draw.generated.end());
      std::sort(seen.begin(), seen.end());
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
      for (const std::int32_t id : seen)
        scratch[id] = scratch[id] > 0 ? scratch[id] / draw.repetition_penalty : scratch[id] * draw.repetition_penalty;
    }
    if (draw.presence_penalty != 0 || draw.frequency_penalty != 0)
      for (std::size_t i = 0; i < draw.generated.size(); ++i) {
        float& value = scratch[draw.generated[i]];
        value -= draw.presence_penalty;
        value -= draw.frequency_penalty * draw.counts[i];
      }
    x = scratch.data();
  }
  return draw.temperature <= 0 ? likeliest(kernels, x, vocabulary) : pick(kernels, draw, x, vocabulary);
}

Likelihood likelihood(const Kernels& kernels, const float* logits, std::size_t vocabulary, std::int32_t token, std::size_t top) {
  const auto order = descending(kernels, logits, vocabulary, std::max<std::size_t>(1, std::min(top, vocabulary)));
  if (order.empty()) return {std::numeric_limits<double>::quiet_NaN(), {}, {}};
  const double log_sum = static_cast<double>(order[0].value) +
                         std::log(kernels.exp_sum(logits, static_cast<std::ptrdiff_t>(vocabulary), order[0].value, 1.0f));
  Likelihood result{static_cast<double>(logits[token]) - log_sum, {}, {}};
  for (std::size_t i = 0; i < std::min(top, order.size()); ++i) {
    result.ids.push_back(order[i].id);
    result.logprobs.push_back(static_cast<double>(order[i].value) - log_sum);
  }
  return result;
}

}  // namespace farthing
