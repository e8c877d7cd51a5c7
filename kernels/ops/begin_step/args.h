// Arguments of the op kernels, without the pieces.
#pragma once

#include "ops/begin_step/begin_step.h"
#include "ops/flatten/pieces.h"

namespace graph_train {

inline BeginStepArgs begin_step_args(user_op::KernelComputeContext* ctx) {
  BeginStepArgs args{};
  args.average = ctx->Tensor4ArgNameAndIndex("average", 0)->mut_dptr<float>();
  args.rows = data_of(ctx, "rows");
  args.previous = data_of(ctx, "previous");
  args.first = result_of(ctx, "out", 0);
  args.second = result_of(ctx, "out", 1);
  args.first_size = integers_of(ctx).at(0);
  args.size = view_of(ctx, "rows").At(1);
  return args;
}

}  // namespace graph_train
