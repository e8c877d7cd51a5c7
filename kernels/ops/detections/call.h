// Arguments of the op kernels of decoding and suppression, read from their context; in host or device memory.
#pragma once

#include <vector>

#include "native/attributes.h"
#include "ops/detections/detections.h"

namespace graph_train {

// INTEGERS of the suppression, followed by the selected classes, none for all.
enum SuppressionInteger { kMultiLabel, kAgnostic, kMaxDetections, kMaxCandidates, kFirstWanted };

inline DecodeArgs decode_args(user_op::KernelComputeContext* ctx) {
  DecodeArgs args{};
  const auto out = view_of(ctx, "out");
  args.out = result_of(ctx);
  args.images = out.At(0);
  args.predictions = out.At(1);
  args.outputs = out.At(2);
  args.anchors = view_of(ctx, "anchors_cells").At(1);
  int64_t first = 0;
  for (int32_t index = 0; index < ctx->input_size("map"); ++index) {
    const auto map = view_of(ctx, "map", index);
    args.levels[args.level_count++] = {data_of(ctx, "map", index),
                                       data_of(ctx, "anchors_cells") + 2 * args.anchors * index,
                                       map.At(1),
                                       map.At(2),
                                       first,
                                       static_cast<float>(integers_of(ctx).at(index))};
    first += args.anchors * map.At(1) * map.At(2);
  }
  return args;
}

// Without the selected classes, which on CUDA are in device memory.
inline SuppressionSettings suppression_settings(user_op::KernelComputeContext* ctx) {
  const auto& floats = floats_of(ctx);
  const auto& integers = integers_of(ctx);
  const auto classes = static_cast<int32_t>(view_of(ctx, "predictions").At(2) - 5);
  return {floats.at(0),
          floats.at(1),
          floats.at(2),
          classes,
          integers.at(kMultiLabel) != 0 && classes > 1,
          integers.at(kAgnostic) != 0,
          static_cast<int32_t>(integers.at(kMaxCandidates)),
          static_cast<int32_t>(integers.at(kMaxDetections)),
          nullptr};
}

// (classes,): 1 for the selected ones; empty for all.
inline std::vector<uint8_t> wanted_classes(user_op::KernelComputeContext* ctx, int32_t classes) {
  const auto& integers = integers_of(ctx);
  if (integers.size() == kFirstWanted) return {};
  std::vector<uint8_t> wanted(classes);
  for (size_t i = kFirstWanted; i < integers.size(); ++i) {
    if (integers[i] >= 0 && integers[i] < classes) wanted[integers[i]] = 1;
  }
  return wanted;
}

}  // namespace graph_train
