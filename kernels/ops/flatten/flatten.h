// Concatenation of flattened tensors.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kFlattenThreads = 256;
constexpr int64_t kFlattenPiece = 4096;  // elements per block or per iteration of a thread

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
