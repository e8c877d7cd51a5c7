// BatchNorm of (B, H, W, C) activations, followed by an optional SiLU; contract: kernels/ops/batch_norm/function.py.
//
// One op forward and one backward. For statistics over all ranks, whose sums are all-reduced in between, they are
// split: channel_mean, channel_variance, normalise; normalise_sums, normalise_grad.
#include "native/op.h"

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

// INTEGERS: 1 in training, 1 for SiLU. FLOATS: epsilon, momentum (weight of the new value).
// OUT: y, statistics (2, C): mean and 1 / deviation of this rank.
const Op batch_norm_op("graph_train_batch_norm", {"x", "gamma", "beta", "moving_mean", "moving_variance"},
                       infer_forward, split_images<kSplitOut, kBroadcastOut>, infer_types,
                       {"moving_mean", "moving_variance"});
// INTEGERS as above. OUT: dx, gradients of gamma and beta.
const Op batch_norm_grad_op("graph_train_batch_norm_grad", {"dy", "x", "statistics", "gamma", "beta"}, infer_backward,
                            split_images<kSplitOut, kPartialOut>, infer_types);

// INTEGERS: pixels of the batch over all ranks. OUT: partial sum of the mean (C,).
const Op channel_mean_op("graph_train_channel_mean", {"x"}, infer_channels, split_images<kPartialOut>, float_outputs);
// The same of the variance about `mean`.
const Op channel_variance_op("graph_train_channel_variance", {"x", "mean"}, infer_channels, split_images<kPartialOut>,
                             float_outputs);
// INTEGERS: pixels of the batch over all ranks, 1 for SiLU. FLOATS as of graph_train_batch_norm. OUT as there.
const Op normalise_op("graph_train_normalise",
                      {"x", "mean", "variance", "gamma", "beta", "moving_mean", "moving_variance"}, infer_forward,
                      split_images<kSplitOut, kBroadcastOut>, infer_types, {"moving_mean", "moving_variance"});
// INTEGERS: 1 for SiLU. OUT, partial sums: gradients of beta and gamma (2, C); the same as gradients of gamma and beta
// (C,) for the optimizer, which are all-reduced with all others.
const Op normalise_sums_op("graph_train_normalise_sums", {"dy", "x", "statistics", "gamma", "beta"}, infer_sums,
                           split_images<kPartialOut>, float_outputs);
// INTEGERS: pixels of the batch over all ranks, 1 for SiLU; `total_sums` are those of all ranks. OUT: dx.
const Op normalise_grad_op("graph_train_normalise_grad", {"dy", "x", "statistics", "gamma", "beta", "total_sums"},
                           like<kShape>("x"), split_images<kSplitOut>, like<kType>("x"));

}  // namespace

}  // namespace graph_train
