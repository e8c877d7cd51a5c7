// Space-to-depth, zero padding and their inverses; contracts: kernels/ops/rearrange/function.py.
#include "native/op.h"
#include "ops/rearrange/call.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

template<bool to_depth>
Maybe<void> infer_depth(user_op::InferContext* ctx) {
  const Shape& x = ctx->InputShape("x", 0);
  CHECK_EQ_OR_RETURN(x.NumAxes(), 4);
  if (to_depth) {
    CHECK_OR_RETURN(x.At(1) % 2 == 0 && x.At(2) % 2 == 0);
    ctx->SetOutputShape("out", 0, Shape({x.At(0), x.At(1) / 2, x.At(2) / 2, x.At(3) * 4}));
  } else {
    CHECK_EQ_OR_RETURN(x.At(3) % 4, 0);
    ctx->SetOutputShape("out", 0, Shape({x.At(0), x.At(1) * 2, x.At(2) * 2, x.At(3) / 4}));
  }
  return Maybe<void>::Ok();
}

template<int sign>
Maybe<void> infer_border(user_op::InferContext* ctx) {
  const Shape& x = ctx->InputShape("x", 0);
  const auto& border = integers_of(ctx);
  CHECK_OR_RETURN(x.NumAxes() == 4 && border.size() == 4);
  for (const int64_t side : border) CHECK_GE_OR_RETURN(side, 0);
  const int64_t rows = x.At(1) + sign * (border[kTop] + border[kBottom]);
  const int64_t columns = x.At(2) + sign * (border[kLeft] + border[kRight]);
  CHECK_OR_RETURN(rows > 0 && columns > 0);
  ctx->SetOutputShape("out", 0, Shape({x.At(0), rows, columns, x.At(3)}));
  return Maybe<void>::Ok();
}

const Op space_to_depth_op("graph_train_space_to_depth", {"x"}, infer_depth<true>, split_images<kSplitOut>,
                           like<kType>("x"));
const Op depth_to_space_op("graph_train_depth_to_space", {"x"}, infer_depth<false>, split_images<kSplitOut>,
                           like<kType>("x"));
// INTEGERS of both: pixels left, right, at the top, at the bottom.
const Op zero_pad_op("graph_train_zero_pad", {"x"}, infer_border<1>, split_images<kSplitOut>, like<kType>("x"));
const Op crop_op("graph_train_crop", {"x"}, infer_border<-1>, split_images<kSplitOut>, like<kType>("x"));

}  // namespace

}  // namespace graph_train
