// Views of test-time augmentation on CUDA: a launch for each view, and one that joins them.
#include "native/cuda/launch.h"
#include "ops/augmented_views/call.h"

namespace graph_train {

namespace {

class AugmentedViewCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const ViewArgs args = view_args(ctx);
    const int64_t numbers = args.planes * args.out_rows * args.out_columns;
    if (numbers == 0) return;
    cuda::launch(cuda::queue_of(ctx), "augmented_view", cuda::blocks_for(numbers, kViewThreads), kViewThreads, args);
  }
};

class JoinViewsCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const JoinArgs args = join_args(ctx);
    const int64_t numbers = args.images * args.joined * args.numbers;
    if (numbers == 0) return;
    cuda::launch(cuda::queue_of(ctx), "join_views", cuda::blocks_for(numbers, kViewThreads), kViewThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_augmented_view", AugmentedViewCudaKernel, GT_IS_FLOAT("out"));
GT_CUDA_KERNEL("graph_train_join_views", JoinViewsCudaKernel, GT_IS_FLOAT("out"));

}  // namespace

}  // namespace graph_train
