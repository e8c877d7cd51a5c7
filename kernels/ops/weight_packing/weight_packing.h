// Arguments of the CUDA kernels that rearrange the weights of all convolutions.
#ifndef GRAPH_TRAIN_KERNELS_WEIGHT_PACKING_H_
#define GRAPH_TRAIN_KERNELS_WEIGHT_PACKING_H_

#include "native/host_device.h"

namespace graph_train {

// One weight: (O, I, KH, KW), taps = KH * KW, beside (O, KH, KW, I).
struct PackedWeight {
  void* plain;   // float, (O, I, KH, KW)
  void* packed;  // activation type, (O, KH, KW, I)
  int64_t start, count;  // place in the row of all weights' numbers
  int32_t in_channels, taps;
};

// Where the number at `index` of a packed weight stands in the plain one.
GT_HOST_DEVICE int64_t plain_index(int64_t index, int64_t in_channels, int64_t taps) {
  const int64_t channel = index % in_channels, tap = index / in_channels % taps, out = index / in_channels / taps;
  return (out * in_channels + channel) * taps + tap;
}

constexpr int kPackThreads = 256;
constexpr int kPackedPerThread = 4;

struct PackArgs {
  const PackedWeight* weights;
  int64_t total;
  int32_t number;
};

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_WEIGHT_PACKING_H_
