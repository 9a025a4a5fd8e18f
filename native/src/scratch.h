// What a thread of the pass has for itself, and what the files of the model share.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "model.h"

namespace farthing {

// Tiles that go through a panel of weights one after another before the next panel: it stays in the first level of cache.
constexpr int kTilesAtOnce = 8;

enum Phase { kEmbed, kNorm, kQkv, kAttend, kProject, kFeed, kDown, kHead, kPhases };

// What a thread asks for of the next attention's keys and values while it multiplies: then memory is idle, and in
// attention it is what everybody waits for.
struct KeysAhead {
  std::vector<std::pair<int, int>> heads;  // block and key-value head, in the order in which attention reads them
  int layer = -1;                          // whose keys; -1: none
  int most = 0, done = 0;                  // of `heads`
  long slots = 0, slot = 0;                // tiles in which one head may be asked for, until that attention

  void begin(int of_layer, long of_slots) {
    layer = of_layer;
    slots = of_slots;
    done = 0;
    slot = 0;
  }
  // How many of the next `tiles` tiles ask for keys.
  int due(int tiles) {
    if (layer < 0 || tiles < 1 || slots < 1) return 0;
    slot += tiles;
    return static_cast<int>(std::clamp<long>(most * slot / slots - done, 0, std::min(tiles, most - done)));
  }
};

struct Model::Scratch {
  Lines<float> row;                    // one row of the widest layer
  Lines<float> tile;                   // so many tiles x rows_max x the widest item of outputs
  Lines<float> feed;                   // so many tiles x rows_max x ffn_block
  Lines<float> attention;              // rows_max x head
  Lines<std::uint8_t> query;           // rows_max x head, in the kernel's layout
  Lines<float> query_sums;
  KeysAhead keys;
  std::vector<Likeliest> likeliest;
};

}  // namespace farthing
