// Arguments of the op kernels of the detection loss, read from their context; in host or device memory.
#pragma once

#include <vector>

#include "native/attributes.h"
#include "ops/detection_loss/detection_loss.h"

namespace graph_train {

inline int64_t anchors_of(int64_t settings, int64_t levels) { return (settings - kLossSettings) / (2 * levels); }

// The part of a batch that this rank has.
struct LocalImages {
  int64_t first, count, batch;
};

// OneFlow splits an axis so that, with a remainder, the first ranks have one element more. If the rank has the whole
// batch, it is not split.
inline LocalImages local_images(user_op::KernelComputeContext* ctx) {
  const int64_t count = view_of(ctx, "map").At(0), batch = view_of(ctx, "labels").At(0);
  if (count == batch) return {0, count, batch};
  const int64_t rank = ctx->parallel_ctx().parallel_id(), ranks = ctx->parallel_ctx().parallel_num();
  const int64_t first = batch / ranks * rank + std::min(rank, batch % ranks);
  CHECK_EQ(count, batch / ranks + (rank < batch % ranks ? 1 : 0)) << "the map must be split by images";
  return {first, count, batch};
}

inline std::vector<LossLevel> levels_of(user_op::KernelComputeContext* ctx) {
  std::vector<LossLevel> levels;
  const auto count = static_cast<int>(ctx->input_size("map"));
  const int64_t anchors = anchors_of(view_of(ctx, "settings").elem_cnt(), count);
  for (int level = 0; level < count; ++level) {
    const auto map = view_of(ctx, "map", level);
    levels.push_back({data_of(ctx, "map", level), result_of(ctx, "out", 2 + level),
                      data_of(ctx, "settings") + kLossSettings + 2 * anchors * level, map.At(1), map.At(2), anchors,
                      map.At(3) / anchors});
  }
  return levels;
}

}  // namespace graph_train
