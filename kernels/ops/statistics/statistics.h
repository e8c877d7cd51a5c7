// The moving average of BatchNorm's running statistics: shared by the CPU's and the CUDA kernels.
#ifndef GRAPH_TRAIN_KERNELS_STATISTICS_H_
#define GRAPH_TRAIN_KERNELS_STATISTICS_H_

#include "ops/flatten/flatten.h"

namespace graph_train {

struct AverageArgs {
  const FlatPiece* pieces;  // of the current values
  float* average;
  const float* share;  // of the current values in the average
  float* out;
};

// Without a share nothing is done, rather than a product with 0: an infinity that is there for now would stay for good.
GT_HOST_DEVICE float moved_average(float average, float current, float share) {
  return share > 0 ? average - (average - current) * share : average;
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_STATISTICS_H_
