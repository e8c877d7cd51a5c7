// Beginning of a step on CUDA.
#include "native/cuda/launch.h"
#include "ops/begin_step/args.h"

namespace graph_train {

namespace {

class BeginStepCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const cuda::Queue queue = cuda::queue_of(ctx);
    const auto pieces = flat_pieces(ctx, "current");
    BeginStepArgs args = begin_step_args(ctx);
    args.pieces = cuda::device_table(queue, pieces);
    cuda::launch(queue, "begin_step", {static_cast<unsigned int>(pieces.size())}, kFlattenThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_begin_step", BeginStepCudaKernel, GT_IS_FLOAT("average"));

}  // namespace

}  // namespace graph_train
