// Moving average of many small tensors; kernels/ops/statistics/function.py has the contract.
#include "ops/flatten/pieces.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_shape(user_op::InferContext* ctx) {
  const Shape row({flat_size(ctx, "current")});
  CHECK_EQ_OR_RETURN(ctx->InputShape("average", 0), row);
  const int64_t index = integers_of(ctx).at(0);
  CHECK_OR_RETURN(index >= 0 && index < ctx->InputShape("share", 0).elem_cnt());
  ctx->SetOutputShape("out", 0, row);
  return Maybe<void>::Ok();
}

Maybe<void> infer_float(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) CHECK_EQ_OR_RETURN(ctx->InputDType(name, index), DataType::kFloat);
  ctx->SetOutputDType("out", 0, DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> mark_average(const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf) {
  return mark_mutable(modifier, conf, {"average"});
}

// INTEGERS: which number of `share` counts. OUT: the current values, as one row.
REGISTER_NO_GRAD_USER_OP("graph_train_average_statistics")
    .Input("current")
    .Input("average")
    .Input("share")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape)
    .SetPhysicalTensorDescInferFn(infer_shape)
    .SetGetSbpFn(user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast)
    .SetInputArgModifyFn(mark_average)
    .SetDataTypeInferFn(infer_float);

}  // namespace

}  // namespace graph_train
