// Shapes of pooling and upsampling of (B, H, W, C) activations, and arguments of the CUDA kernels.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kPoolThreads = 256;
// Consecutive channels per thread.
constexpr int kPoolPerThread = 8;

GT_HOST_DEVICE int64_t pooled_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

struct PoolShape {
  int64_t batch, rows, columns, channels, out_rows, out_columns;
  int64_t kernel, stride, padding;
};

struct PoolArgs {
  PoolShape shape;
  const void* in;  // x or dy
  void* out;       // y or dx
  int32_t* where;
};

// `rows` are those of all images together.
struct UpsampleArgs {
  const void* in;
  void* out;
  int64_t rows, columns, channels, factor;  // of the smaller activation
};

}  // namespace graph_train
