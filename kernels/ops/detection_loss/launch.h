// Arguments of the CUDA kernel of the detection loss.
#pragma once

#include "ops/detection_loss/detection_loss.h"

namespace graph_train {

constexpr int kLossThreads = 256;
constexpr int kLossTile = 256;        // cells of one image and level that a block processes at once
constexpr int kMaxLossBlocks = 2048;  // of a launch; no GPU runs more at once

struct LossArgs {
  LossLevel levels[kMaxLevels];
  int64_t first_tile[kMaxLevels + 1];  // of each level in the row of all levels' tiles; then the number of tiles
  int64_t first_image, batch;          // first image of this rank; images of the whole batch
  int32_t level_count, slots;
  const float* labels;  // (batch, slots, 5)
  const float* settings;
  const float* balance;
  const float* scale;
  float* total;
  float* parts;
  int64_t* counts;  // (levels, kMaxLossBlocks): matches that each block found
  LossSums* sums;   // (tiles,)
  unsigned int* grid_counters;
};

GT_HOST_DEVICE int64_t tiles_of_image(int64_t cells) { return (cells + kLossTile - 1) / kLossTile; }

}  // namespace graph_train
