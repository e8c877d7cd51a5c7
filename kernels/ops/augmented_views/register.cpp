// Views of test-time augmentation and their predictions; kernels/ops/augmented_views/function.py has the contracts.
#include "native/op.h"
#include "ops/augmented_views/call.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_view(user_op::InferContext* ctx) {
  const Shape& images = ctx->InputShape("images", 0);
  const auto& integers = integers_of(ctx);
  CHECK_OR_RETURN(images.NumAxes() == 4 && images.At(2) > 0 && images.At(3) > 0);
  CHECK_OR_RETURN(integers.at(kScaledRows) > 0 && integers.at(kScaledRows) <= integers.at(kViewRows));
  CHECK_OR_RETURN(integers.at(kScaledColumns) > 0 && integers.at(kScaledColumns) <= integers.at(kViewColumns));
  ctx->SetOutputShape("out", 0, Shape({images.At(0), images.At(1), integers.at(kViewRows), integers.at(kViewColumns)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_view_type(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputDType("images", 0), DataType::kUInt8);
  ctx->SetOutputDType("out", 0, DataType::kFloat);
  return Maybe<void>::Ok();
}

// INTEGERS: see call.h. FLOATS: value of the border.
const Op augmented_view_op("graph_train_augmented_view", {"images"}, infer_view, split_images<kSplitOut>,
                           infer_view_type);

Maybe<void> infer_joined(user_op::InferContext* ctx) {
  const int32_t views = ctx->input_size("rows");
  const auto& integers = integers_of(ctx);
  CHECK_OR_RETURN(views >= 1 && views <= kMaxViews);
  CHECK_EQ_OR_RETURN(static_cast<int64_t>(integers.size()), 1 + kJoinIntegers * views);
  CHECK_EQ_OR_RETURN(static_cast<int64_t>(floats_of(ctx).size()), views);
  const Shape& first = ctx->InputShape("rows", 0);
  int64_t joined = 0;
  for (int32_t view = 0; view < views; ++view) {
    const Shape& rows = ctx->InputShape("rows", view);
    const auto own = integers.begin() + 1 + kJoinIntegers * view;
    CHECK_OR_RETURN(rows.NumAxes() == 3 && rows.At(0) == first.At(0) && rows.At(2) == first.At(2));
    CHECK_OR_RETURN(own[kFirstRow] >= 0 && own[kKeptRows] >= 0 && own[kFirstRow] + own[kKeptRows] <= rows.At(1));
    joined += own[kKeptRows];
  }
  ctx->SetOutputShape("out", 0, Shape({first.At(0), joined, first.At(2)}));
  return Maybe<void>::Ok();
}

// INTEGERS: see call.h. FLOATS: scale of each view.
const Op join_views_op("graph_train_join_views", {"rows"}, infer_joined, split_first_axis, all_float);

}  // namespace

}  // namespace graph_train
