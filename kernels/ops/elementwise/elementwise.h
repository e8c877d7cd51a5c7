// Arguments of the elementwise CUDA kernels.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kElementwiseThreads = 256;
constexpr int kMaxSummands = 8;
// Elements per thread.
constexpr int kPerThread = 8;

struct AddArgs {
  const void* inputs[kMaxSummands];
  void* out;
  int64_t count;
  int32_t summands;
};

struct CastArgs {
  const void* in;
  void* out;
  int64_t count;
};

struct FillArgs {
  void* out;
  int64_t count;
  float value;
};

}  // namespace graph_train
