// Scalars of a step and the average of BatchNorm's statistics; kernels/ops/begin_step/function.py has the contract.
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

Maybe<void> infer_float(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) CHECK_EQ_OR_RETURN(ctx->InputDType(name, index), DataType::kFloat);
  for (const int32_t index : {0, 1}) ctx->SetOutputDType("out", index, DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> mark_average(const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf) {
  return mark_mutable(modifier, conf, {"average"});
}

// INTEGERS: length of the first output. OUT: the chosen row in two parts.
REGISTER_NO_GRAD_USER_OP("graph_train_begin_step")
    .Input("current")
    .Input("average")
    .Input("rows")
    .Input("previous")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape)
    .SetPhysicalTensorDescInferFn(infer_shape)
    .SetGetSbpFn(user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast)
    .SetInputArgModifyFn(mark_average)
    .SetDataTypeInferFn(infer_float);

}  // namespace

}  // namespace graph_train
