// Common parts of kernels for OneFlow's own ops.
#pragma once

#include <string>

#include "native/common.h"
#include "native/vector_kernels.h"

namespace graph_train {

inline bool is_channels_last(const user_op::KernelComputeContext* ctx) {
  return ctx->Attr<std::string>("data_format") == "channels_last";
}

inline void add_to(float* target, const float* source, int64_t n) {
  vector_kernels().rows<float>().add(target, source, target, n);
}

}  // namespace graph_train
