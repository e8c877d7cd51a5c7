// BatchNorm with an optional SiLU behind it on (B, H, W, C) activations; kernels/ops/batch_norm/function.py has the contract.
//
// The whole of it is one op each way. With statistics over the images of all ranks the sums must meet between the ranks,
// so there it comes apart: channel_mean, channel_variance, normalise; normalise_sums, normalise_grad.
#include "native/attributes.h"
#include "native/sbp.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

int64_t channels_of(const user_op::InferContext* ctx) { return ctx->InputShape("x", 0).At(3); }

Maybe<void> infer_forward(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->InputShape("x", 0));
  ctx->SetOutputShape("out", 1, Shape({2, channels_of(ctx)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_backward(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->InputShape("x", 0));
  for (int32_t index : {1, 2}) ctx->SetOutputShape("out", index, Shape({channels_of(ctx)}));
  return Maybe<void>::Ok();
}

// The first output is an activation, all others are float.
Maybe<void> infer_types(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, ctx->InputDType("x", 0));
  for (int32_t index = 1; index < static_cast<int32_t>(ctx->outputs().size()); ++index) {
    ctx->SetOutputDType("out", index, DataType::kFloat);
  }
  return Maybe<void>::Ok();
}

Maybe<void> infer_channels(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, Shape({channels_of(ctx)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_sums(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, Shape({2, channels_of(ctx)}));
  for (int32_t index : {1, 2}) ctx->SetOutputShape("out", index, Shape({channels_of(ctx)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_float(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->outputs()) ctx->SetOutputDType(name, index, DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> mark_moving(const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf) {
  return mark_mutable(modifier, conf, {"moving_mean", "moving_variance"});
}

// INTEGERS: 1 in training, 1 for SiLU. FLOATS: epsilon, momentum (share of the new value).
// OUT: y, statistics (2, C): mean and 1 / deviation, each rank's own.
REGISTER_NO_GRAD_USER_OP("graph_train_batch_norm")
    .Input("x")
    .Input("gamma")
    .Input("beta")
    .Input("moving_mean")
    .Input("moving_variance")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_forward)
    .SetPhysicalTensorDescInferFn(infer_forward)
    .SetGetSbpFn(split_images<kSplitOut, kWholeOut>)
    .SetInputArgModifyFn(mark_moving)
    .SetDataTypeInferFn(infer_types);
// INTEGERS as above. OUT: dx, gradients of gamma and beta.
REGISTER_NO_GRAD_USER_OP("graph_train_batch_norm_grad")
    .Input("dy")
    .Input("x")
    .Input("statistics")
    .Input("gamma")
    .Input("beta")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_backward)
    .SetPhysicalTensorDescInferFn(infer_backward)
    .SetGetSbpFn(split_images<kSplitOut, kPartialOut>)
    .SetDataTypeInferFn(infer_types);

// INTEGERS: pixels of the batch over all ranks. OUT: this rank's share of the mean (C,).
REGISTER_NO_GRAD_USER_OP("graph_train_channel_mean")
    .Input("x")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_channels)
    .SetPhysicalTensorDescInferFn(infer_channels)
    .SetGetSbpFn(split_images<kPartialOut>)
    .SetDataTypeInferFn(infer_float);
// The same of the variance about `mean`.
REGISTER_NO_GRAD_USER_OP("graph_train_channel_variance")
    .Input("x")
    .Input("mean")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_channels)
    .SetPhysicalTensorDescInferFn(infer_channels)
    .SetGetSbpFn(split_images<kPartialOut>)
    .SetDataTypeInferFn(infer_float);
// INTEGERS: pixels of the batch over all ranks, 1 for SiLU. FLOATS as of graph_train_batch_norm. OUT as there.
REGISTER_NO_GRAD_USER_OP("graph_train_normalise")
    .Input("x")
    .Input("mean")
    .Input("variance")
    .Input("gamma")
    .Input("beta")
    .Input("moving_mean")
    .Input("moving_variance")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_forward)
    .SetPhysicalTensorDescInferFn(infer_forward)
    .SetGetSbpFn(split_images<kSplitOut, kWholeOut>)
    .SetInputArgModifyFn(mark_moving)
    .SetDataTypeInferFn(infer_types);
// INTEGERS: 1 for SiLU. OUT, this rank's shares: gradients of beta and gamma (2, C); those of gamma and of beta (C,) for
// the optimiser, so that they meet with all other gradients.
REGISTER_NO_GRAD_USER_OP("graph_train_normalise_sums")
    .Input("dy")
    .Input("x")
    .Input("statistics")
    .Input("gamma")
    .Input("beta")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_sums)
    .SetPhysicalTensorDescInferFn(infer_sums)
    .SetGetSbpFn(split_images<kPartialOut>)
    .SetDataTypeInferFn(infer_float);
// INTEGERS: pixels of the batch over all ranks, 1 for SiLU; `whole_sums` are those of all ranks. OUT: dx.
REGISTER_NO_GRAD_USER_OP("graph_train_normalise_grad")
    .Input("dy")
    .Input("x")
    .Input("statistics")
    .Input("gamma")
    .Input("beta")
    .Input("whole_sums")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(like<kShape>("x"))
    .SetPhysicalTensorDescInferFn(like<kShape>("x"))
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(like<kType>("x"));

}  // namespace

}  // namespace graph_train
