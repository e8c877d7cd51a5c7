// Packs weights of convolutions and linear layers in the order and type of activations; contract:
// kernels/ops/weight_packing/function.py.
#include "native/activation_type.h"
#include "native/op.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

// (O, I, KH, KW) -> (O, KH, KW, I), (O, I) -> (O, 1, 1, I).
Maybe<void> infer_packed_shapes(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) {
    const Shape& in = ctx->InputShape(name, index);
    CHECK_OR_RETURN(in.NumAxes() == 4 || in.NumAxes() == 2);
    const bool linear = in.NumAxes() == 2;
    ctx->SetOutputShape("out", index, Shape({in.At(0), linear ? 1 : in.At(2), linear ? 1 : in.At(3), in.At(1)}));
  }
  return Maybe<void>::Ok();
}

// The reverse.
Maybe<void> infer_unpacked_shapes(user_op::InferContext* ctx) {
  const std::vector<int64_t>& axes = integers_of(ctx);
  CHECK_EQ_OR_RETURN(axes.size(), ctx->inputs().size());
  for (const auto& [name, index] : ctx->inputs()) {
    const Shape& in = ctx->InputShape(name, index);
    CHECK_EQ_OR_RETURN(in.NumAxes(), 4);
    if (axes.at(index) == 2) {
      CHECK_EQ_OR_RETURN(in.Count(1, 3), 1);
      ctx->SetOutputShape("out", index, Shape({in.At(0), in.At(3)}));
    } else {
      ctx->SetOutputShape("out", index, Shape({in.At(0), in.At(3), in.At(1), in.At(2)}));
    }
  }
  return Maybe<void>::Ok();
}

Maybe<void> infer_packed_types(user_op::InferContext* ctx) {
  const DataType type = activation_type(integers_of(ctx).at(0));
  CHECK_NE_OR_RETURN(type, DataType::kInvalidDataType);
  for (const auto& [name, index] : ctx->outputs()) ctx->SetOutputDType(name, index, type);
  return Maybe<void>::Ok();
}

// INTEGERS: the type of activations.
const Op pack_weights_op("graph_train_pack_weights", {"weight"}, infer_packed_shapes,
                         user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast, infer_packed_types);
// INTEGERS: the axes of each weight, 4 or 2. Gradients are sums over images, which may be partial on each rank.
const Op unpack_weights_op("graph_train_unpack_weights", {"gradient"}, infer_unpacked_shapes, keep_partial_sums,
                           float_outputs);

}  // namespace

}  // namespace graph_train
