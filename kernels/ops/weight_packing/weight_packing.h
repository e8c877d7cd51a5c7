// Weights (O, I, taps) float <-> (O, taps, I) in the type of activations: the table of the CUDA kernels.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kPackThreads = 256;
constexpr int kPackPerThread = 4;

struct PackedWeight {
  const void* in;
  void* out;
  int64_t count;        // elements
  int64_t first_block;  // of the launch
  int32_t inputs, taps;
};

struct PackArgs {
  const PackedWeight* weights;
  int32_t number;
};

// Index in (O, I, taps) of the element with `index` in (O, taps, I).
GT_HOST_DEVICE int64_t unpacked_place(int64_t index, int64_t inputs, int64_t taps) {
  const int64_t row = index / inputs, output = row / taps;
  return (output * inputs + index - row * inputs) * taps + row - output * taps;
}

// Index in (O, taps, I) of the element with `index` in (O, I, taps): the same with the axes exchanged.
GT_HOST_DEVICE int64_t packed_place(int64_t index, int64_t inputs, int64_t taps) {
  return unpacked_place(index, taps, inputs);
}

}  // namespace graph_train
