// Activation functions and their gradients; kernels/ops/activation_function/function.py has the contract.
#include "native/sbp.h"
#include "ops/activation_function/call.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_shape(user_op::InferContext* ctx) {
  CHECK_OR_RETURN(integers_of(ctx).at(0) >= 0 && integers_of(ctx).at(0) < kActivationKinds);
  CHECK_EQ_OR_RETURN(floats_of(ctx).size(), 1);
  for (const auto& [name, index] : ctx->inputs()) {
    CHECK_EQ_OR_RETURN(ctx->InputShape(name, index), ctx->InputShape("x", 0));
  }
  ctx->SetOutputShape("out", 0, ctx->InputShape("x", 0));
  return Maybe<void>::Ok();
}

Maybe<void> infer_type(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) {
    CHECK_EQ_OR_RETURN(ctx->InputDType(name, index), ctx->InputDType("x", 0));
  }
  ctx->SetOutputDType("out", 0, ctx->InputDType("x", 0));
  return Maybe<void>::Ok();
}

// INTEGERS: the kind. FLOATS: its parameter, or anything.
REGISTER_NO_GRAD_USER_OP("graph_train_activate")
    .Input("x")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape)
    .SetPhysicalTensorDescInferFn(infer_shape)
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(infer_type);
// The same. OUT: dx.
REGISTER_NO_GRAD_USER_OP("graph_train_activate_grad")
    .Input("dy")
    .Input("x")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape)
    .SetPhysicalTensorDescInferFn(infer_shape)
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(infer_type);

}  // namespace

}  // namespace graph_train
