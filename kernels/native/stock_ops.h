// Common parts of kernels for OneFlow's own ops.
#ifndef GRAPH_TRAIN_KERNELS_STOCK_OPS_H_
#define GRAPH_TRAIN_KERNELS_STOCK_OPS_H_

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

#endif  // GRAPH_TRAIN_KERNELS_STOCK_OPS_H_
