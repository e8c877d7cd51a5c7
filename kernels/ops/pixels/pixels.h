// Pixels of images as activations: the arithmetic and the arguments of the CUDA kernel.
#ifndef GRAPH_TRAIN_KERNELS_PIXELS_H_
#define GRAPH_TRAIN_KERNELS_PIXELS_H_

#include "native/host_device.h"

namespace graph_train {

constexpr float kPixelScale = 255.0f;
constexpr int kPixelThreads = 256;

struct PixelArgs {
  const uint8_t* images;  // (batch, channels, area)
  void* out;              // (batch, area, channels)
  int64_t batch, channels, area;
};

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_PIXELS_H_
