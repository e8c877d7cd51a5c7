// Convolution on (B, H, W, C) activations and its gradients; kernels/ops/convolution/function.py has the contract.
#include "native/op.h"
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

const Op convolution_op("graph_train_convolution", {"x", "weight"}, infer_convolution, split_images<kSplitOut>,
                        like<kType>("x"));
const Op convolution_data_grad_op("graph_train_convolution_data_grad", {"dy", "weight", "x"}, like<kShape>("x"),
                                  split_images<kSplitOut>, like<kType>("x"));
const Op convolution_filter_grad_op("graph_train_convolution_filter_grad", {"dy", "x", "weight"},
                                    like<kShape>("weight"), split_images<kPartialOut>, like<kType>("weight"));

}  // namespace

}  // namespace graph_train
