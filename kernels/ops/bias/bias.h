// Biases of convolutions: the arithmetic and the arguments of the CUDA kernels.
#ifndef GRAPH_TRAIN_KERNELS_BIAS_H_
#define GRAPH_TRAIN_KERNELS_BIAS_H_

#include "native/host_device.h"

namespace graph_train {

constexpr int kBiasThreads = 256;
// Rows that one block of the gradient sums up.
constexpr int64_t kBiasRows = 512;

struct BiasArgs {
  const void* x;  // (rows, channels)
  const float* bias;
  void* out;
  int64_t rows, channels;
  int32_t silu;
};

struct BiasGradArgs {
  const float* dy;  // (rows, channels)
  void* dx;
  float* partial;  // (blocks of rows, channels)
  float* d_bias;
  int64_t rows, channels, blocks;
};

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_BIAS_H_
