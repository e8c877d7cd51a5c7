#include "native/op.h"

namespace graph_train {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

namespace {

user_op::InputArgModifyFn mark_mutable(const std::vector<std::string>& names) {
  return [names](const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf) -> Maybe<void> {
    for (const std::string& name : names) {
      for (int32_t index = 0; index < conf.input_size(name); ++index) {
        user_op::InputArgModifier* argument = modifier(name, index);
        CHECK_OR_RETURN(argument != nullptr);
        argument->set_is_mutable(true);
      }
    }
    return Maybe<void>::Ok();
  };
}

}  // namespace

Op::Op(const char* name, const std::vector<const char*>& inputs, const user_op::TensorDescInferFn& logical_shapes,
       const user_op::TensorDescInferFn& physical_shapes, const user_op::GetSbpFn& sharding,
       const user_op::DataTypeInferFn& types, const std::vector<std::string>& mutable_inputs) {
  user_op::OpRegistry registry = user_op::UserOpRegistryMgr::Get().CheckAndGetOpRegistry(name);
  for (const char* input : inputs) registry.Input(input);
  registry.Output("out")
      .NoGrad()
      .Attr<std::vector<int64_t>>(kIntegers, {})
      .Attr<std::vector<float>>(kFloats, {})
      .SetLogicalTensorDescInferFn(logical_shapes)
      .SetPhysicalTensorDescInferFn(physical_shapes)
      .SetGetSbpFn(sharding)
      .SetDataTypeInferFn(types);
  if (!mutable_inputs.empty()) registry.SetInputArgModifyFn(mark_mutable(mutable_inputs));
  user_op::UserOpRegisterTrigger<user_op::OpRegistry> registered(registry);
}

Maybe<void> float_outputs(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->outputs()) ctx->SetOutputDType(name, index, DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> all_float(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) CHECK_EQ_OR_RETURN(ctx->InputDType(name, index), DataType::kFloat);
  return float_outputs(ctx);
}

Maybe<void> split_first_axis(user_op::SbpContext* ctx) {
  ctx->NewBuilder().Split(ctx->inputs(), 0).Split(ctx->outputs(), 0).Build();
  return Maybe<void>::Ok();
}

Maybe<void> keep_partial_sums(user_op::SbpContext* ctx) {
  ctx->NewBuilder().PartialSum(ctx->inputs()).PartialSum(ctx->outputs()).Build();
  return Maybe<void>::Ok();
}

}  // namespace graph_train
