// Moving average of many small tensors on the CPU.
#include "native/common.h"

// Products and sums are rounded one by one.
#include "native/exact_rounding.h"

#include "ops/flatten/pieces.h"
#include "ops/statistics/statistics.h"

namespace graph_train {

namespace {

class AverageKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    float* const average = ctx->Tensor4ArgNameAndIndex("average", 0)->mut_dptr<float>();
    float* const out = result_of(ctx);
    const float share = data_of(ctx, "share")[integers_of(ctx).at(0)];
    for (const FlatPiece& piece : flat_pieces(ctx, "current")) {
      for (int64_t i = 0; i < piece.count; ++i) {
        const float current = piece.from[i];
        out[piece.start + i] = current;
        average[piece.start + i] = moved_average(average[piece.start + i], current, share);
      }
    }
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CPU_KERNEL("graph_train_average_statistics", AverageKernel, GT_IS_FLOAT("average"));

}  // namespace

}  // namespace graph_train
