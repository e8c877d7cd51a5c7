// Concatenates flattened tensors on CUDA.
#include "native/cuda/launch.h"
#include "ops/flatten/pieces.h"

namespace graph_train {

namespace {

class FlattenCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const cuda::Queue queue = cuda::queue_of(ctx);
    const auto pieces = flat_pieces(ctx, "tensor");
    if (pieces.empty()) return;
    const FlattenArgs args{cuda::device_table(queue, pieces), result_of(ctx)};
    cuda::launch(queue, "flatten", {static_cast<unsigned int>(pieces.size())}, kFlattenThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_flatten", FlattenCudaKernel, GT_IS_FLOAT("tensor"));

}  // namespace

}  // namespace graph_train
