// Arguments of the op kernels of augmented views, read from their context; in host or device memory.
#pragma once

#include "native/attributes.h"
#include "ops/augmented_views/augmented_views.h"

namespace graph_train {

// INTEGERS of a view.
enum ViewInteger { kScaledRows, kScaledColumns, kViewRows, kViewColumns, kMirrored };
// INTEGERS of the joining: the width of the image, then these of each view.
enum JoinInteger { kFirstRow, kKeptRows, kRowsMirrored, kJoinIntegers };

inline ViewArgs view_args(user_op::KernelComputeContext* ctx) {
  const auto images = view_of(ctx, "images");
  const auto& integers = integers_of(ctx);
  ViewArgs args{};
  args.images = data_of<uint8_t>(ctx, "images");
  args.out = result_of(ctx);
  args.planes = images.Count(0, 2);
  args.rows = images.At(2);
  args.columns = images.At(3);
  args.scaled_rows = integers.at(kScaledRows);
  args.scaled_columns = integers.at(kScaledColumns);
  args.out_rows = integers.at(kViewRows);
  args.out_columns = integers.at(kViewColumns);
  args.border = floats_of(ctx).at(0);
  args.mirrored = static_cast<int32_t>(integers.at(kMirrored));
  return args;
}

inline JoinArgs join_args(user_op::KernelComputeContext* ctx) {
  const auto out = view_of(ctx, "out");
  const auto& integers = integers_of(ctx);
  JoinArgs args{};
  args.out = result_of(ctx);
  args.images = out.At(0);
  args.numbers = out.At(2);
  args.width = static_cast<float>(integers.at(0));
  args.view_count = ctx->input_size("rows");
  for (int32_t index = 0; index < args.view_count; ++index) {
    const auto own = integers.begin() + 1 + kJoinIntegers * index;
    args.views[index] = {data_of(ctx, "rows", index),
                         view_of(ctx, "rows", index).At(1),
                         own[kFirstRow],
                         own[kKeptRows],
                         args.joined,
                         floats_of(ctx).at(index),
                         static_cast<int32_t>(own[kRowsMirrored])};
    args.joined += own[kKeptRows];
  }
  return args;
}

}  // namespace graph_train
