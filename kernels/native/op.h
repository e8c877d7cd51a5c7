// Registration of the plugin's ops: names, inference of shapes and types, and sharding over ranks (SBP).
//
// Data parallelism: activations are split by images, arrays per channel are broadcast, sums over images are partial
// sums.
#pragma once

#include <string>
#include <vector>

#include "native/attributes.h"
#include "oneflow/core/framework/user_op_registry_manager.h"

namespace graph_train {

// Registers an op with the attributes of attributes.h and the output list "out", when the library is loaded.
// `mutable_inputs` are changed in place. The physical shapes are those of one rank, the logical ones those of all
// ranks.
class Op {
 public:
  Op(const char* name, const std::vector<const char*>& inputs, const user_op::TensorDescInferFn& logical_shapes,
     const user_op::TensorDescInferFn& physical_shapes, const user_op::GetSbpFn& sharding,
     const user_op::DataTypeInferFn& types, const std::vector<std::string>& mutable_inputs = {});

  // For an op with the same rule for logical and physical shapes.
  Op(const char* name, const std::vector<const char*>& inputs, const user_op::TensorDescInferFn& shapes,
     const user_op::GetSbpFn& sharding, const user_op::DataTypeInferFn& types,
     const std::vector<std::string>& mutable_inputs = {})
      : Op(name, inputs, shapes, shapes, sharding, types, mutable_inputs) {}
};

enum Property { kShape, kType };

// Every output has the shape or the type of one input.
template<Property property>
auto like(const char* input) {
  return [input](user_op::InferContext* ctx) -> oneflow::Maybe<void> {
    for (const auto& [name, index] : ctx->outputs()) {
      if (property == kShape) {
        ctx->SetOutputShape(name, index, ctx->InputShape(input, 0));
      } else {
        ctx->SetOutputDType(name, index, ctx->InputDType(input, 0));
      }
    }
    return oneflow::Maybe<void>::Ok();
  };
}

// All outputs are float32.
oneflow::Maybe<void> float_outputs(user_op::InferContext* ctx);
// All inputs must be float32, and all outputs are.
oneflow::Maybe<void> all_float(user_op::InferContext* ctx);

// Every input and output is split along its first axis.
oneflow::Maybe<void> split_first_axis(user_op::SbpContext* ctx);
// Partial sums of inputs give partial sums of outputs. OneFlow adds the rule for broadcast inputs by itself.
oneflow::Maybe<void> keep_partial_sums(user_op::SbpContext* ctx);

// Activations, whose first axis is the batch.
inline bool holds_images(const std::string& name) {
  return name == "x" || name == "dy" || name == "images" || name == "map" || name == "where";
}

// Sums over the images of this rank, which are partial sums of the batch.
inline bool is_partial(const std::string& name) { return name == "sums"; }

enum OutputSharding { kSplitOut, kPartialOut, kBroadcastOut };

template<OutputSharding... outputs>
oneflow::Maybe<void> split_images(user_op::SbpContext* ctx) {
  auto builder = ctx->NewBuilder();
  for (const auto& [name, index] : ctx->inputs()) {
    const user_op::OpArg argument{std::string(name), index};
    if (holds_images(name)) {
      builder.Split(argument, 0);
    } else if (is_partial(name)) {
      builder.PartialSum(argument);
    } else {
      builder.Broadcast(argument);
    }
  }
  // The last value applies to all further outputs.
  constexpr OutputSharding of_output[] = {outputs...};
  for (size_t i = 0; i < ctx->outputs().size(); ++i) {
    const auto& [name, index] = ctx->outputs()[i];
    const user_op::OpArg result{std::string(name), index};
    switch (of_output[std::min(i, sizeof...(outputs) - 1)]) {
      case kSplitOut: builder.Split(result, 0); break;
      case kPartialOut: builder.PartialSum(result); break;
      case kBroadcastOut: builder.Broadcast(result); break;
    }
  }
  builder.Build();
  return oneflow::Maybe<void>::Ok();
}

}  // namespace graph_train
