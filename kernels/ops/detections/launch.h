// Arguments of the CUDA kernels of decoding and suppression.
#pragma once

#include "ops/detections/detections.h"

namespace graph_train {

constexpr int kDecodeThreads = 256;
constexpr int kSuppressThreads = 512;

struct SuppressArgs {
  SuppressionSettings settings;
  const float* predictions;  // (images, boxes, 5 + classes)
  int64_t boxes;
  uint64_t* keys;    // (images, capacity), a power of 2, at least the number of candidates
  int64_t capacity;  // of one image
  Box<float>* kept;  // (images, max_detections)
  float* detections;
  int32_t* counts;
};

}  // namespace graph_train
