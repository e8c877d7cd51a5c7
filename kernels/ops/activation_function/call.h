// Arguments of the op kernels of activation functions, read from their context; in host or device memory.
#pragma once

#include "native/attributes.h"
#include "ops/activation_function/activation_function.h"

namespace graph_train {

// `gradient`: whether the op is the gradient, which has the input dy.
inline ActivateArgs activate_args(user_op::KernelComputeContext* ctx, bool gradient) {
  return {data_of<void>(ctx, "x"),      gradient ? data_of<void>(ctx, "dy") : nullptr, result_of<void>(ctx),
          view_of(ctx, "x").elem_cnt(), static_cast<int32_t>(integers_of(ctx).at(0)),  floats_of(ctx).at(0)};
}

}  // namespace graph_train
