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
  Lines<std::int32_t> query_owed;
  std::vector<Likeliest> likeliest;
  // Its share of the blocks whose keys and values each attention of this step reads. Layers ask for them while they compute.
  std::vector<std::int32_t> keys;
  std::size_t keys_asked = 0;          // so many of the next attention's
  const std::uint8_t* keys_of = nullptr;  // its layer's block 0
};

}  // namespace farthing
