// What a thread of the pass has for itself, and what the files of the model share.
#pragma once

#include <vector>

#include "model.h"

namespace farthing {

// Tiles that go through a panel of weights one after another before the next panel: it stays in the first level of cache.
constexpr int kTilesAtOnce = 8;

enum Phase { kEmbed, kNorm, kQkv, kAttend, kProject, kFeed, kDown, kHead, kPhases };

struct Model::Scratch {
  Lines<float> row;                    // one row of the widest layer
  Lines<float> tile;                   // so many tiles x rows_max x the widest item of outputs
  Lines<float> feed;                   // so many tiles x rows_max x ffn_block
  Lines<float> attention;              // rows_max x head
  Lines<std::uint8_t> query;           // rows_max x head, in the kernel's layout
  Lines<float> query_sums;
  std::vector<Likeliest> likeliest;
};

}  // namespace farthing
