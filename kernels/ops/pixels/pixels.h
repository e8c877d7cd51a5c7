// Arguments of the CUDA kernels that convert images to activations.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kPixelThreads = 256;
// Consecutive pixels per thread.
constexpr int kPixelsPerThread = 8;
constexpr float kMaxPixel = 255.0f;

struct PixelArgs {
  const void* images;  // (images, 3, area), uint8_t or float
  void* out;           // (images, area, 3)
  int64_t number, area;
};

}  // namespace graph_train
