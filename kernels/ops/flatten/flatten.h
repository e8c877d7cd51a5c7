// Several tensors as one row of numbers.
#ifndef GRAPH_TRAIN_KERNELS_FLATTEN_H_
#define GRAPH_TRAIN_KERNELS_FLATTEN_H_

#include "native/host_device.h"

namespace graph_train {

constexpr int kFlattenThreads = 256;
constexpr int64_t kFlattenPiece = 4096;  // elements that a block or a turn of a thread works on

// Some elements of one tensor.
struct FlatPiece {
  const float* from;
  int64_t start;  // in the row
  int64_t count;
};

struct FlattenArgs {
  const FlatPiece* pieces;
  float* out;
};

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_FLATTEN_H_
