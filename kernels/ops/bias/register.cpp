// The bias of a convolution on (B, H, W, C) activations; kernels/ops/bias/function.py has the contract.
#include "native/attributes.h"
#include "native/sbp.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_type(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, integers_of(ctx).at(0) != 0 ? DataType::kFloat : ctx->InputDType("x", 0));
  return Maybe<void>::Ok();
}

Maybe<void> infer_gradients(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->InputShape("dy", 0));
  ctx->SetOutputShape("out", 1, Shape({ctx->InputShape("dy", 0).At(3)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_gradient_types(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, activation_type(integers_of(ctx).at(0)));
  ctx->SetOutputDType("out", 1, DataType::kFloat);
  return Maybe<void>::Ok();
}

// INTEGERS: 1 for a float result, 1 for SiLU.
REGISTER_NO_GRAD_USER_OP("graph_train_add_bias")
    .Input("x")
    .Input("bias")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(like<kShape>("x"))
    .SetPhysicalTensorDescInferFn(like<kShape>("x"))
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(infer_type);
// INTEGERS: the activation type of x. OUT: dx, gradient of the bias.
REGISTER_NO_GRAD_USER_OP("graph_train_add_bias_grad")
    .Input("dy")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_gradients)
    .SetPhysicalTensorDescInferFn(infer_gradients)
    .SetGetSbpFn(split_images<kSplitOut, kPartialOut>)
    .SetDataTypeInferFn(infer_gradient_types);

}  // namespace

}  // namespace graph_train
