// What kernels for several of OneFlow's own ops have in common.
#ifndef GRAPH_TRAIN_KERNELS_STOCK_OPS_H_
#define GRAPH_TRAIN_KERNELS_STOCK_OPS_H_

#include <string>

#include "common.h"
#include "vector_kernels.h"

namespace graph_train {

inline bool is_channels_last(const user_op::KernelComputeContext* ctx) {
  return ctx->Attr<std::string>("data_format") == "channels_last";
}

inline void add_to(float* target, const float* source, int64_t n) {
  vector_kernels().rows<float>().add(target, source, target, n);
}

// A graph's compiler may fuse a following sum into an op, which then has this input.
inline void add_further_input(user_op::KernelComputeContext* ctx, user_op::Tensor* out) {
  const auto* further = ctx->Tensor4ArgNameAndIndex("_add_to_output", 0);
  if (further == nullptr) return;
  const float* source = further->dptr<float>();
  float* target = out->mut_dptr<float>();
  parallel_for(out->shape_view().elem_cnt(), 1 << 14,
               [=](int64_t begin, int64_t end) { add_to(target + begin, source + begin, end - begin); });
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_STOCK_OPS_H_
