// Several float32 tensors as one row of numbers; kernels/ops/flatten/function.py has the contract.
#include "ops/flatten/pieces.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_row(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, Shape({flat_size(ctx, "tensor")}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_float(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) CHECK_EQ_OR_RETURN(ctx->InputDType(name, index), DataType::kFloat);
  ctx->SetOutputDType("out", 0, DataType::kFloat);
  return Maybe<void>::Ok();
}

// A row of summands is a summand of the row. That whole tensors give a whole row OneFlow adds by itself.
Maybe<void> keep_summands(user_op::SbpContext* ctx) {
  ctx->NewBuilder().PartialSum(ctx->inputs()).PartialSum(ctx->outputs()).Build();
  return Maybe<void>::Ok();
}

REGISTER_NO_GRAD_USER_OP("graph_train_flatten")
    .Input("tensor")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_row)
    .SetPhysicalTensorDescInferFn(infer_row)
    .SetGetSbpFn(keep_summands)
    .SetDataTypeInferFn(infer_float);

}  // namespace

}  // namespace graph_train
