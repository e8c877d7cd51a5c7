// Upsampling and max pooling of (B, H, W, C) activations; kernels/ops/pooling/function.py has the contract.
#include "native/op.h"
#include "ops/pooling/pooling.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

// INTEGERS: the factor.
template<bool kGradient>
Maybe<void> infer_upsampled(user_op::InferContext* ctx) {
  const Shape& in = ctx->InputShape("in", 0);
  const int64_t factor = integers_of(ctx).at(0);
  const int64_t rows = kGradient ? in.At(1) / factor : in.At(1) * factor;
  const int64_t columns = kGradient ? in.At(2) / factor : in.At(2) * factor;
  ctx->SetOutputShape("out", 0, Shape({in.At(0), rows, columns, in.At(3)}));
  return Maybe<void>::Ok();
}

Maybe<void> split_images_or_channels(user_op::SbpContext* ctx) {
  for (const int64_t axis : {0, 3}) ctx->NewBuilder().Split(ctx->inputs(), axis).Split(ctx->outputs(), axis).Build();
  return Maybe<void>::Ok();
}

Maybe<void> infer_pooled(user_op::InferContext* ctx) {
  const Shape& x = ctx->InputShape("x", 0);
  CHECK_EQ_OR_RETURN(x.NumAxes(), 4);
  const auto& integers = integers_of(ctx);
  const int64_t kernel = integers.at(0), stride = integers.at(1), padding = integers.at(2);
  CHECK_OR_RETURN(kernel >= 1 && stride >= 1 && padding >= 0 && 2 * padding <= kernel);
  CHECK_OR_RETURN(x.At(1) + 2 * padding >= kernel && x.At(2) + 2 * padding >= kernel);
  const Shape y(
      {x.At(0), pooled_size(x.At(1), kernel, stride, padding), pooled_size(x.At(2), kernel, stride, padding), x.At(3)});
  for (int32_t index : {0, 1}) ctx->SetOutputShape("out", index, y);
  return Maybe<void>::Ok();
}

Maybe<void> infer_pooled_types(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, ctx->InputDType("x", 0));
  ctx->SetOutputDType("out", 1, DataType::kInt32);
  return Maybe<void>::Ok();
}

Maybe<void> infer_pooled_grad(user_op::InferContext* ctx) {
  const Shape& dy = ctx->InputShape("dy", 0);
  ctx->SetOutputShape("out", 0, Shape({dy.At(0), integers_of(ctx).at(3), integers_of(ctx).at(4), dy.At(3)}));
  return Maybe<void>::Ok();
}

const Op upsample_op("graph_train_upsample", {"in"}, infer_upsampled<false>, split_images_or_channels,
                     like<kType>("in"));
const Op upsample_grad_op("graph_train_upsample_grad", {"in"}, infer_upsampled<true>, split_images_or_channels,
                          like<kType>("in"));
// INTEGERS: kernel, stride, padding. OUT: y; which tap of its window each value came from (row * kernel + column).
const Op max_pool_op("graph_train_max_pool", {"x"}, infer_pooled, split_images<kSplitOut>, infer_pooled_types);
// INTEGERS: kernel, stride, padding, height and width of x. OUT: dx.
const Op max_pool_grad_op("graph_train_max_pool_grad", {"dy", "where"}, infer_pooled_grad, split_images<kSplitOut>,
                          like<kType>("dy"));

}  // namespace

}  // namespace graph_train
