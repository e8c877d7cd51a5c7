// Convolution on (B, H, W, C) activations and its gradients; kernels/ops/convolution/function.py has the contract.
#include "native/attributes.h"
#include "native/sbp.h"
#include "ops/convolution/geometry.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_convolution(user_op::InferContext* ctx) {
  const Shape& x = ctx->InputShape("x", 0);
  const Shape& weight = ctx->InputShape("weight", 0);
  CHECK_OR_RETURN(x.NumAxes() == 4 && weight.NumAxes() == 4);
  const ConvolutionShape s = shape_of(integers_of(ctx), x, weight);
  ctx->SetOutputShape("out", 0, Shape({s.batch, s.out_height, s.out_width, s.out_channels}));
  return Maybe<void>::Ok();
}

REGISTER_NO_GRAD_USER_OP("graph_train_convolution")
    .Input("x")
    .Input("weight")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_convolution)
    .SetPhysicalTensorDescInferFn(infer_convolution)
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(like<kType>("x"));
REGISTER_NO_GRAD_USER_OP("graph_train_convolution_data_grad")
    .Input("dy")
    .Input("weight")
    .Input("x")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(like<kShape>("x"))
    .SetPhysicalTensorDescInferFn(like<kShape>("x"))
    .SetGetSbpFn(split_images<kSplitOut>)
    .SetDataTypeInferFn(like<kType>("x"));
REGISTER_NO_GRAD_USER_OP("graph_train_convolution_filter_grad")
    .Input("dy")
    .Input("x")
    .Input("weight")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(like<kShape>("weight"))
    .SetPhysicalTensorDescInferFn(like<kShape>("weight"))
    .SetGetSbpFn(split_images<kPartialOut>)
    .SetDataTypeInferFn(like<kType>("weight"));

}  // namespace

}  // namespace graph_train
