// Arguments of the op kernels of attention, read from their context; in host or device memory.
#pragma once

#include "native/attributes.h"
#include "ops/attention/attention.h"

namespace graph_train {

inline AttentionArgs attention_args(user_op::KernelComputeContext* ctx, bool gradient) {
  AttentionArgs args{};
  const auto x = view_of(ctx, "x");
  args.shape = {x.At(0), x.Count(1, 3), x.At(3) / 3, integers_of(ctx).at(0)};
  args.x = data_of<void>(ctx, "x");
  args.out = result_of<void>(ctx, "out", 0);
  if (gradient) {
    args.dy = data_of<void>(ctx, "dy");
    args.weights = const_cast<float*>(data_of(ctx, "map"));
  } else {
    args.weights = result_of(ctx, "out", 1);
  }
  return args;
}

}  // namespace graph_train
