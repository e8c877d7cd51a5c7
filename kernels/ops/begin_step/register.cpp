// Scalars of a step and the average of BatchNorm's statistics; kernels/ops/begin_step/function.py has the contract.
#include "native/op.h"
#include "ops/flatten/pieces.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_shape(user_op::InferContext* ctx) {
  const int64_t statistics = flat_size(ctx, "current");
  CHECK_GT_OR_RETURN(statistics, 0);
  CHECK_EQ_OR_RETURN(ctx->InputShape("average", 0), Shape({statistics}));
  CHECK_EQ_OR_RETURN(ctx->InputShape("previous", 0), Shape({2}));
  const Shape& rows = ctx->InputShape("rows", 0);
  const int64_t first = integers_of(ctx).at(0);
  CHECK_OR_RETURN(rows.NumAxes() == 2 && rows.At(0) == 2 && first > 0 && first < rows.At(1));
  ctx->SetOutputShape("out", 0, Shape({first}));
  ctx->SetOutputShape("out", 1, Shape({rows.At(1) - first}));
  return Maybe<void>::Ok();
}

// INTEGERS: length of the first output. OUT: the chosen row in two parts.
const Op begin_step_op("graph_train_begin_step", {"current", "average", "rows", "previous"}, infer_shape,
                       user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast, all_float, {"average"});

}  // namespace

}  // namespace graph_train
