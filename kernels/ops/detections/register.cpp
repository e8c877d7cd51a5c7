// Decoding of a head's maps, and suppression of overlapping boxes; kernels/ops/detections/function.py has the
// contracts.
#include "native/op.h"
#include "ops/detections/call.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_decoded(user_op::InferContext* ctx) {
  const int32_t levels = ctx->input_size("map");
  const Shape& anchors = ctx->InputShape("anchors_cells", 0);
  CHECK_OR_RETURN(levels >= 1 && levels <= kMaxDecodedLevels);
  CHECK_OR_RETURN(anchors.NumAxes() == 3 && anchors.At(0) == levels && anchors.At(1) > 0 && anchors.At(2) == 2);
  CHECK_EQ_OR_RETURN(static_cast<int64_t>(integers_of(ctx).size()), levels);
  int64_t predictions = 0;
  for (int32_t level = 0; level < levels; ++level) {
    const Shape& map = ctx->InputShape("map", level);
    CHECK_OR_RETURN(map.NumAxes() == 4 && map.At(3) % anchors.At(1) == 0 && map.At(3) / anchors.At(1) > 5);
    CHECK_EQ_OR_RETURN(map.At(0), ctx->InputShape("map", 0).At(0));
    CHECK_EQ_OR_RETURN(map.At(3), ctx->InputShape("map", 0).At(3));
    predictions += anchors.At(1) * map.At(1) * map.At(2);
  }
  const Shape& first = ctx->InputShape("map", 0);
  ctx->SetOutputShape("out", 0, Shape({first.At(0), predictions, first.At(3) / anchors.At(1)}));
  return Maybe<void>::Ok();
}

// INTEGERS: the stride of each level in px.
const Op decode_op("graph_train_decode", {"map", "anchors_cells"}, infer_decoded, split_images<kSplitOut>, all_float);

Maybe<void> infer_detections(user_op::InferContext* ctx) {
  const Shape& predictions = ctx->InputShape("predictions", 0);
  CHECK_OR_RETURN(predictions.NumAxes() == 3 && predictions.At(2) > 5);
  CHECK_LT_OR_RETURN(predictions.At(1) * (predictions.At(2) - 5), int64_t{1} << 32);
  CHECK_OR_RETURN(integers_of(ctx).at(kMaxDetections) > 0 && integers_of(ctx).at(kMaxCandidates) > 0);
  ctx->SetOutputShape("out", 0, Shape({predictions.At(0), integers_of(ctx).at(kMaxDetections), kDetectionValues}));
  ctx->SetOutputShape("out", 1, Shape({predictions.At(0)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_detection_types(user_op::InferContext* ctx) {
  JUST(all_float(ctx));
  ctx->SetOutputDType("out", 1, DataType::kInt32);
  return Maybe<void>::Ok();
}

// FLOATS: confidence and IoU thresholds, shift of classes. INTEGERS: see call.h. OUT: detections, their number.
const Op suppress_op("graph_train_suppress", {"predictions"}, infer_detections, split_first_axis,
                     infer_detection_types);

}  // namespace

}  // namespace graph_train
