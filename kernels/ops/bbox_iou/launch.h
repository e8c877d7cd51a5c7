// Arguments of the CUDA kernels of box overlaps.
#pragma once

#include "ops/bbox_iou/bbox_iou.h"

namespace graph_train {

constexpr int kBoxThreads = 256;

struct BoxIouArgs {
  const float* box1;  // (pairs, 4)
  const float* box2;
  const float* grad;  // (pairs,), of the overlap; unused for values
  float* out1;        // (pairs,) overlap, or (pairs, 4) gradient of box1
  float* out2;        // gradient of box2; null if not needed
  int64_t pairs;
  float eps;
  int32_t centre_form;
  IouKind kind;
};

}  // namespace graph_train
