// What the op kernels of activation functions read from their context; memory may be the host's or a device's.
#ifndef GRAPH_TRAIN_KERNELS_ACTIVATION_FUNCTION_CALL_H_
#define GRAPH_TRAIN_KERNELS_ACTIVATION_FUNCTION_CALL_H_

#include "native/attributes.h"
#include "ops/activation_function/activation_function.h"

namespace graph_train {

// Whether the op is the gradient is a matter of its inputs.
inline ActivateArgs activate_args(user_op::KernelComputeContext* ctx, bool gradient) {
  return {data_of<void>(ctx, "x"),      gradient ? data_of<void>(ctx, "dy") : nullptr, result_of<void>(ctx),
          view_of(ctx, "x").elem_cnt(), static_cast<int32_t>(integers_of(ctx).at(0)),  floats_of(ctx).at(0)};
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_ACTIVATION_FUNCTION_CALL_H_
