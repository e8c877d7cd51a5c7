// Adding a bias to (B, H, W, C) activations; kernels/ops/bias/function.py has the contract.
#include "native/activation_type.h"
#include "native/op.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_sum(user_op::InferContext* ctx) {
  const Shape& x = ctx->InputShape("x", 0);
  CHECK_EQ_OR_RETURN(x.NumAxes(), 4);
  CHECK_OR_RETURN(ctx->InputShape("bias", 0) == Shape({x.At(3)}));
  ctx->SetOutputShape("out", 0, x);
  return Maybe<void>::Ok();
}

Maybe<void> infer_sum_type(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, integers_of(ctx).at(0) != 0 ? DataType::kFloat : ctx->InputDType("x", 0));
  return Maybe<void>::Ok();
}

Maybe<void> infer_gradients(user_op::InferContext* ctx) {
  const Shape& dy = ctx->InputShape("dy", 0);
  ctx->SetOutputShape("out", 0, dy);
  ctx->SetOutputShape("out", 1, Shape({dy.At(3)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_gradient_types(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, activation_type(integers_of(ctx).at(0)));
  ctx->SetOutputDType("out", 1, DataType::kFloat);
  return Maybe<void>::Ok();
}

// INTEGERS: 1 for a float32 result, 1 for SiLU.
const Op add_bias_op("graph_train_add_bias", {"x", "bias"}, infer_sum, split_images<kSplitOut>, infer_sum_type);
// INTEGERS: the type of x. OUT: dx, the gradient of the bias.
const Op add_bias_grad_op("graph_train_add_bias_grad", {"dy"}, infer_gradients, split_images<kSplitOut, kPartialOut>,
                          infer_gradient_types);

}  // namespace

}  // namespace graph_train
