// Overlap of matched box pairs and its gradient; kernels/ops/bbox_iou/function.py has the contract.
#include "native/op.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_values(user_op::InferContext* ctx) {
  const oneflow::Shape& boxes = ctx->InputShape("box1", 0);
  CHECK_EQ_OR_RETURN(boxes, ctx->InputShape("box2", 0));
  CHECK_OR_RETURN(boxes.NumAxes() >= 1 && boxes.At(boxes.NumAxes() - 1) == 4);
  ctx->SetOutputShape("out", 0, oneflow::Shape(oneflow::DimVector(boxes.dim_vec().begin(), boxes.dim_vec().end() - 1)));
  return Maybe<void>::Ok();
}

// Gradients of box1 and, if wanted, of box2, one behind the other: (1 or 2, ..., 4).
Maybe<void> infer_gradients(user_op::InferContext* ctx) {
  const oneflow::Shape& boxes = ctx->InputShape("box1", 0);
  CHECK_EQ_OR_RETURN(boxes, ctx->InputShape("box2", 0));
  oneflow::DimVector out(boxes.dim_vec().begin(), boxes.dim_vec().end());
  const auto wanted = static_cast<int64_t>(floats_of(ctx).at(1));
  CHECK_OR_RETURN(wanted == 1 || wanted == 2);
  out.insert(out.begin(), wanted);
  ctx->SetOutputShape("out", 0, oneflow::Shape(out));
  return Maybe<void>::Ok();
}

Maybe<void> infer_dtype(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputDType("box1", 0), ctx->InputDType("box2", 0));
  ctx->SetOutputDType("out", 0, ctx->InputDType("box1", 0));
  return Maybe<void>::Ok();
}

// Pairs are independent: every axis but that of the four numbers may be split over devices.
Maybe<void> split_pairs(user_op::SbpContext* ctx, int64_t new_axes) {
  const int64_t axes = ctx->LogicalTensorDesc4InputArgNameAndIndex("box1", 0).shape().NumAxes() - 1;
  for (int64_t axis = 0; axis < axes; ++axis) {
    ctx->NewBuilder().Split(ctx->inputs(), axis).Split(ctx->outputs(), axis + new_axes).Build();
  }
  return Maybe<void>::Ok();
}

const Op bbox_iou_op(
    "graph_train_bbox_iou", {"box1", "box2"}, infer_values,
    [](user_op::SbpContext* ctx) { return split_pairs(ctx, 0); }, infer_dtype);

const Op bbox_iou_grad_op(
    "graph_train_bbox_iou_grad", {"box1", "box2", "grad"}, infer_gradients,
    [](user_op::SbpContext* ctx) { return split_pairs(ctx, 1); }, infer_dtype);

}  // namespace

}  // namespace graph_train
