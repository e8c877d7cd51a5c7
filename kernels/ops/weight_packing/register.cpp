// Weights of convolutions as cuDNN wants them; kernels/ops/weight_packing/function.py has the contract.
#include "native/attributes.h"
#include "native/sbp.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

// (O, I, KH, KW) -> (O, KH, KW, I)
Maybe<void> infer_packed(user_op::InferContext* ctx) {
  for (int32_t i = 0; i < ctx->input_size("weight"); ++i) {
    const Shape& plain = ctx->InputShape("weight", i);
    CHECK_EQ_OR_RETURN(plain.NumAxes(), 4);
    ctx->SetOutputShape("out", i, Shape({plain.At(0), plain.At(2), plain.At(3), plain.At(1)}));
  }
  return Maybe<void>::Ok();
}

Maybe<void> infer_plain(user_op::InferContext* ctx) {
  for (int32_t i = 0; i < ctx->input_size("gradient"); ++i) {
    const Shape& packed = ctx->InputShape("gradient", i);
    CHECK_EQ_OR_RETURN(packed.NumAxes(), 4);
    ctx->SetOutputShape("out", i, Shape({packed.At(0), packed.At(3), packed.At(1), packed.At(2)}));
  }
  return Maybe<void>::Ok();
}

Maybe<void> infer_activation_type(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->outputs()) {
    ctx->SetOutputDType(name, index, activation_type(integers_of(ctx).at(0)));
  }
  return Maybe<void>::Ok();
}

Maybe<void> infer_float(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->outputs()) ctx->SetOutputDType(name, index, DataType::kFloat);
  return Maybe<void>::Ok();
}

// Rearranged summands are summands of the rearranged.
Maybe<void> keep_sums(user_op::SbpContext* ctx) {
  ctx->NewBuilder().PartialSum(ctx->inputs()).PartialSum(ctx->outputs()).Build();
  return Maybe<void>::Ok();
}

// INTEGERS: the activation type.
REGISTER_NO_GRAD_USER_OP("graph_train_pack_weights")
    .Input("weight")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_packed)
    .SetPhysicalTensorDescInferFn(infer_packed)
    .SetGetSbpFn(user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast)
    .SetDataTypeInferFn(infer_activation_type);
REGISTER_NO_GRAD_USER_OP("graph_train_unpack_weights")
    .Input("gradient")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_plain)
    .SetPhysicalTensorDescInferFn(infer_plain)
    .SetGetSbpFn(keep_sums)
    .SetDataTypeInferFn(infer_float);

}  // namespace

}  // namespace graph_train
