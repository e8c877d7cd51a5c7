// Arguments of the CUDA kernel of the update.
#ifndef GRAPH_TRAIN_KERNELS_UPDATE_LAUNCH_H_
#define GRAPH_TRAIN_KERNELS_UPDATE_LAUNCH_H_

#include "ops/update/update.h"

namespace graph_train {

constexpr int kUpdateThreads = 256;
// Elements that a block works on at once: of a small network each multiprocessor should get some.
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

#endif  // GRAPH_TRAIN_KERNELS_UPDATE_LAUNCH_H_
