// Activation functions and their gradients; kernels/ops/activation_function/function.py has the contract.
#include "native/op.h"
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
const Op activate_op("graph_train_activate", {"x"}, infer_shape, split_images<kSplitOut>, infer_type);
// The same. OUT: dx.
const Op activate_grad_op("graph_train_activate_grad", {"dy", "x"}, infer_shape, split_images<kSplitOut>, infer_type);

}  // namespace

}  // namespace graph_train
