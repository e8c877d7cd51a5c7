// Common parts of op registrations: inference of shapes and types from an input, and sharding over ranks.
//
// Data parallelism: activations are split by images, all that belongs to channels is whole everywhere, sums over images
// are partial.
#ifndef GRAPH_TRAIN_KERNELS_SBP_H_
#define GRAPH_TRAIN_KERNELS_SBP_H_

#include <string>

#include "native/common.h"

namespace graph_train {

enum What { kShape, kType };

// Every output has the shape or the type of one input.
template<What what>
auto like(const char* input) {
  return [input](user_op::InferContext* ctx) -> oneflow::Maybe<void> {
    for (const auto& [name, index] : ctx->outputs()) {
      if (what == kShape) {
        ctx->SetOutputShape(name, index, ctx->InputShape(input, 0));
      } else {
        ctx->SetOutputDType(name, index, ctx->InputDType(input, 0));
      }
    }
    return oneflow::Maybe<void>::Ok();
  };
}

// Activations, whose first axis counts images.
inline bool holds_images(const std::string& name) {
  return name == "x" || name == "dy" || name == "images" || name == "map" || name == "where";
}

// Gradients and sums of which each rank has its own images' share.
inline bool is_partial(const std::string& name) { return name == "sums"; }

enum Spread { kSplitOut, kPartialOut, kWholeOut };

template<Spread... outputs>
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
  // The last one stands for all that follow.
  constexpr Spread of_output[] = {outputs...};
  for (size_t i = 0; i < ctx->outputs().size(); ++i) {
    const auto& [name, index] = ctx->outputs()[i];
    const user_op::OpArg result{std::string(name), index};
    switch (of_output[std::min(i, sizeof...(outputs) - 1)]) {
      case kSplitOut: builder.Split(result, 0); break;
      case kPartialOut: builder.PartialSum(result); break;
      case kWholeOut: builder.Broadcast(result); break;
    }
  }
  builder.Build();
  return oneflow::Maybe<void>::Ok();
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_SBP_H_
