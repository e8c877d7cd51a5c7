// The loss of a whole detection head with the gradients of its maps, and the weights of its levels that follow it;
// kernels/ops/detection_loss/function.py has the contract.
#include "native/op.h"
#include "ops/detection_loss/call.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_loss(user_op::InferContext* ctx) {
  const int32_t levels = ctx->input_size("map");
  CHECK_OR_RETURN(levels >= 1 && levels <= kMaxLevels);
  const int64_t anchors = anchors_of(ctx->InputShape("settings", 0).elem_cnt(), levels);
  CHECK_OR_RETURN(anchors > 0 && ctx->InputShape("settings", 0).elem_cnt() == kLossSettings + 2 * anchors * levels);
  CHECK_EQ_OR_RETURN(ctx->InputShape("labels", 0).NumAxes(), 3);
  CHECK_EQ_OR_RETURN(ctx->InputShape("labels", 0).At(2), kLabelValues);
  CHECK_EQ_OR_RETURN(ctx->InputShape("balance", 0), Shape({levels}));
  CHECK_GT_OR_RETURN(ctx->InputShape("scale", 0).elem_cnt(), 0);
  ctx->SetOutputShape("out", 0, Shape({1}));
  ctx->SetOutputShape("out", 1, Shape({3 + levels}));
  for (int32_t level = 0; level < levels; ++level) {
    const Shape& map = ctx->InputShape("map", level);
    CHECK_OR_RETURN(map.NumAxes() == 4 && map.elem_cnt() > 0);
    CHECK_OR_RETURN(map.At(3) % anchors == 0 && map.At(3) / anchors > 5);
    CHECK_EQ_OR_RETURN(map.At(3), ctx->InputShape("map", 0).At(3));
    CHECK_EQ_OR_RETURN(map.At(0), ctx->InputShape("map", 0).At(0));
    ctx->SetOutputShape("out", 2 + level, map);
  }
  return Maybe<void>::Ok();
}

// Over all ranks there are as many images as labels of images.
Maybe<void> infer_whole_loss(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputShape("map", 0).At(0), ctx->InputShape("labels", 0).At(0));
  return infer_loss(ctx);
}

// Every rank has the labels of all images, so that means run over the whole batch.
// OUT: total (1,), parts (3 + levels,), gradient of each map.
const Op detection_loss_op("graph_train_detection_loss", {"map", "labels", "settings", "balance", "scale"},
                           infer_whole_loss, infer_loss, split_images<kPartialOut, kPartialOut, kSplitOut>, all_float);

Maybe<void> infer_rebalance(user_op::InferContext* ctx) {
  const Shape& balance = ctx->InputShape("balance", 0);
  CHECK_EQ_OR_RETURN(ctx->InputShape("parts", 0), Shape({3 + balance.elem_cnt()}));
  const int64_t reference = integers_of(ctx).at(0);
  CHECK_OR_RETURN(reference >= 0 && reference < balance.elem_cnt());
  ctx->SetOutputShape("out", 0, balance);
  return Maybe<void>::Ok();
}

// INTEGERS: the reference level. OUT: a copy of the new balance.
const Op rebalance_op("graph_train_rebalance", {"balance", "parts"}, infer_rebalance,
                      user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast, all_float, {"balance"});

}  // namespace

}  // namespace graph_train
