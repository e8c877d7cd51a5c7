// Concatenates flattened float32 tensors; contract: kernels/ops/flatten/function.py.
#include "native/op.h"
#include "ops/flatten/pieces.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

Maybe<void> infer_row(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, Shape({flat_size(ctx, "tensor")}));
  return Maybe<void>::Ok();
}

const Op flatten_op("graph_train_flatten", {"tensor"}, infer_row, keep_partial_sums, all_float);

}  // namespace

}  // namespace graph_train
