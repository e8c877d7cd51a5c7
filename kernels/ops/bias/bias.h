// Arguments of the CUDA kernels that add a bias to an array (rows, channels), and of its gradient.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kBiasThreads = 256;
// Consecutive elements per thread.
constexpr int kBiasPerThread = 8;
// In the gradient, a block processes this many consecutive channels; its other threads process other rows.
constexpr int kBiasColumns = 32;
constexpr int kBiasLanes = kBiasThreads / kBiasColumns;
constexpr int64_t kBiasMaxParts = 512;
constexpr int64_t kBiasRowsPerThread = 16;

struct AddBiasArgs {
  const void* x;
  const float* bias;
  void* out;
  int64_t count, channels;
  bool silu;
};

// Rows are cut into `parts`; block.x is the part, block.y the group of channels.
struct AddBiasGradArgs {
  const void* dy;
  void* dx;
  float* partial_sums;  // (parts, channels)
  float* d_bias;
  int64_t rows, channels, parts;
};

}  // namespace graph_train
