// Self-attention over the pixels of each image; kernels/ops/attention/function.py has the contract.
#include "native/op.h"
#include "ops/attention/call.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_forward(user_op::InferContext* ctx) {
  const Shape& x = ctx->InputShape("x", 0);
  const int64_t heads = integers_of(ctx).at(0);
  CHECK_OR_RETURN(x.NumAxes() == 4 && heads > 0 && x.At(3) % (3 * heads) == 0);
  const int64_t tokens = x.At(1) * x.At(2);
  ctx->SetOutputShape("out", 0, Shape({x.At(0), x.At(1), x.At(2), x.At(3) / 3}));
  ctx->SetOutputShape("out", 1, Shape({x.At(0), heads, tokens, tokens}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_types(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, ctx->InputDType("x", 0));
  ctx->SetOutputDType("out", 1, DataType::kFloat);
  return Maybe<void>::Ok();
}

// INTEGERS: number of heads. OUT: y; attention weights (images, heads, queries, keys).
const Op attention_op("graph_train_attention", {"x"}, infer_forward, split_images<kSplitOut>, infer_types);
// INTEGERS as above. OUT: dx.
const Op attention_grad_op("graph_train_attention_grad", {"dy", "x", "map"}, like<kShape>("x"), split_images<kSplitOut>,
                           like<kType>("x"));

}  // namespace

}  // namespace graph_train
