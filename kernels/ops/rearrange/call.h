// Arguments of the op kernels of space-to-depth and padding, read from their context; in host or device memory.
#pragma once

#include "native/attributes.h"
#include "ops/rearrange/rearrange.h"

namespace graph_train {

// INTEGERS of zero_pad and crop.
enum Border { kLeft, kRight, kTop, kBottom };

inline DepthArgs depth_args(user_op::KernelComputeContext* ctx, bool to_depth) {
  const auto deep = view_of(ctx, to_depth ? "out" : "x");
  return {data_of<void>(ctx, "x"), result_of<void>(ctx), deep.Count(0, 2), deep.At(2), deep.At(3) / 4};
}

inline PadArgs pad_args(user_op::KernelComputeContext* ctx, bool pad) {
  const auto small = view_of(ctx, pad ? "x" : "out"), large = view_of(ctx, pad ? "out" : "x");
  const auto& border = integers_of(ctx);
  return {data_of<void>(ctx, "x"), result_of<void>(ctx), small.At(0), small.At(1), small.At(2), small.At(3),
          border.at(kLeft),        border.at(kTop),      large.At(1), large.At(2)};
}

}  // namespace graph_train
