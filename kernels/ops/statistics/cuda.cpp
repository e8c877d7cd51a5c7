// Moving average of many small tensors on CUDA.
#include "native/cuda/launch.h"
#include "ops/flatten/pieces.h"
#include "ops/statistics/statistics.h"

namespace graph_train {

namespace {

class AverageCudaKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const cuda::Queue queue = cuda::queue_of(ctx);
    const auto pieces = flat_pieces(ctx, "current");
    if (pieces.empty()) return;
    const AverageArgs args{cuda::device_table(queue, pieces),
                           ctx->Tensor4ArgNameAndIndex("average", 0)->mut_dptr<float>(),
                           data_of(ctx, "share") + integers_of(ctx).at(0), result_of(ctx)};
    cuda::launch(queue, "average_statistics", {static_cast<unsigned int>(pieces.size())}, kFlattenThreads, args);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CUDA_KERNEL("graph_train_average_statistics", AverageCudaKernel, GT_IS_FLOAT("average"));

}  // namespace

}  // namespace graph_train
