// Which token comes next: the arithmetic of farthing.llm.sampler, which is its definition and its oracle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace farthing {

struct Draw {
  const float* logits;
  double temperature = 1, top_p = 1, min_p = 0;
  std::int64_t top_k = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::uint64_t seed = 0;
  std::uint32_t choice = 0, position = 0;
  const std::int64_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
  std::size_t biases = 0;
  const std::int64_t* prompt_ids = nullptr;  // for the repetition penalty, each once
  std::size_t prompt = 0;
  std::vector<std::int32_t> generated;       // each once
  std::vector<float> counts;                 // how often
  std::vector<std::int32_t> banned;
  const std::uint32_t* mask = nullptr;       // a bit for each token, lowest first: only those set may come
};

struct Likelihood {
  double logprob;
  std::vector<std::int32_t> ids;
  std::vector<double> logprobs;
};

// Philox4x32-10 (Salmon et al., SC 2011); 24 bits in [0, 1).
double uniform(std::uint64_t seed, std::uint32_t choice, std::uint32_t position);

// The token; ids have been checked. `scratch` is kept between calls.
std::int32_t sample(const Kernels& kernels, const Draw& draw, std::size_t vocabulary, std::vector<float>& scratch);

Likelihood likelihood(const Kernels& kernels, const float* logits, std::size_t vocabulary, std::int32_t token, std::size_t top);

}  // namespace farthing
