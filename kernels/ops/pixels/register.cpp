// Conversion of images to the first activation; contract: kernels/ops/pixels/function.py.
#include "native/activation_type.h"
#include "native/op.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_shape(user_op::InferContext* ctx) {
  const Shape& images = ctx->InputShape("images", 0);
  CHECK_OR_RETURN(images.NumAxes() == 4 && images.At(1) == 3);
  ctx->SetOutputShape("out", 0, Shape({images.At(0), images.At(2), images.At(3), 3}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_type(user_op::InferContext* ctx) {
  const DataType given = ctx->InputDType("images", 0);
  CHECK_OR_RETURN(given == DataType::kUInt8 || given == DataType::kFloat);
  const DataType type = activation_type(integers_of(ctx).at(0));
  CHECK_NE_OR_RETURN(type, DataType::kInvalidDataType);
  ctx->SetOutputDType("out", 0, type);
  return Maybe<void>::Ok();
}

// INTEGERS: the type of activations.
const Op pixels_op("graph_train_pixels", {"images"}, infer_shape, split_images<kSplitOut>, infer_type);

}  // namespace

}  // namespace graph_train
