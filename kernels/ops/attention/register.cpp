// Self-attention over the pixels of each image; kernels/ops/attention/function.py has the contract.
#include "native/sbp.h"
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

// INTEGERS: number of heads. OUT: y; what each query takes of each key (images, heads, tokens, tokens).
REGISTER_NO_GRAD_USER_OP("graph_train_attention")
    .Input("x")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_forward)
    .SetPhysicalTensorDescInferFn(infer_forward)
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(infer_types);
// INTEGERS as above. OUT: dx.
REGISTER_NO_GRAD_USER_OP("graph_train_attention_grad")
    .Input("dy")
    .Input("x")
    .Input("map")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(like<kShape>("x"))
    .SetPhysicalTensorDescInferFn(like<kShape>("x"))
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(like<kType>("x"));

}  // namespace

}  // namespace graph_train
