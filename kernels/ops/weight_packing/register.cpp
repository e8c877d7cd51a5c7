// Convolution weights in the order and type of activations; kernels/ops/weight_packing/function.py has the contract.
#include "native/activation_type.h"
#include "native/op.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

// (O, I, KH, KW) -> (O, KH, KW, I) or back.
template<bool kPack>
Maybe<void> infer_shapes(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) {
    const Shape& in = ctx->InputShape(name, index);
    CHECK_EQ_OR_RETURN(in.NumAxes(), 4);
    ctx->SetOutputShape(
        "out", index,
        kPack ? Shape({in.At(0), in.At(2), in.At(3), in.At(1)}) : Shape({in.At(0), in.At(3), in.At(1), in.At(2)}));
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
const Op pack_weights_op("graph_train_pack_weights", {"weight"}, infer_shapes<true>,
                         user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast, infer_packed_types);
// Gradients are sums over images, which may be partial on each rank.
const Op unpack_weights_op("graph_train_unpack_weights", {"gradient"}, infer_shapes<false>, keep_partial_sums,
                           float_outputs);

}  // namespace

}  // namespace graph_train
