// Arguments of the CUDA kernel of the update.
#pragma once

#include "ops/update/update.h"

namespace graph_train {

constexpr int kUpdateThreads = 256;
// Elements that a block processes at once; small enough to use all multiprocessors with a small network.
constexpr int64_t kUpdatePiece = 4096;

struct UpdateArgs {
  const Piece* pieces;
  int64_t count;  // of pieces
  const float* hyper;
  float* out;       // (2,): norm before clipping (NaN without update), 1 if the weights were updated
  double* squares;  // (count,): sum of the squares of each piece's unscaled gradient
  unsigned int* grid_counters;
  Rule rule;
  float max_norm;
};

}  // namespace graph_train
