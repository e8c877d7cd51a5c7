// Images as the first activation; kernels/ops/pixels/function.py has the contract.
#include "native/attributes.h"
#include "native/sbp.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_shape(user_op::InferContext* ctx) {
  const Shape& images = ctx->InputShape("images", 0);
  CHECK_EQ_OR_RETURN(images.NumAxes(), 4);
  ctx->SetOutputShape("out", 0, Shape({images.At(0), images.At(2), images.At(3), images.At(1)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_type(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputDType("images", 0), DataType::kUInt8);
  ctx->SetOutputDType("out", 0, activation_type(integers_of(ctx).at(0)));
  return Maybe<void>::Ok();
}

// INTEGERS: the activation type.
REGISTER_NO_GRAD_USER_OP("graph_train_pixels")
    .Input("images")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape)
    .SetPhysicalTensorDescInferFn(infer_shape)
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(infer_type);

}  // namespace

}  // namespace graph_train
