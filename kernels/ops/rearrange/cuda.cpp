// Space-to-depth, zero padding and their inverses on CUDA.
#include "native/cuda/launch.h"
#include "ops/rearrange/call.h"

namespace graph_train {

namespace {

template<typename Args>
void launch(user_op::KernelComputeContext* ctx, const char* kernel, const Args& args) {
  const int64_t numbers = view_of(ctx, "out").elem_cnt();
  if (numbers == 0) return;
  cuda::launch(cuda::queue_of(ctx), cuda::name_of(kernel, type_of(ctx, "x")),
               cuda::blocks_for(numbers, kRearrangeThreads), kRearrangeThreads, args);
}

template<bool to_depth>
class DepthCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    launch(ctx, to_depth ? "space_to_depth" : "depth_to_space", depth_args(ctx, to_depth));
  }
};

template<bool pad>
class BorderCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    launch(ctx, pad ? "zero_pad" : "crop", pad_args(ctx, pad));
  }
};

GT_CUDA_KERNEL("graph_train_space_to_depth", DepthCudaKernel<true>, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_depth_to_space", DepthCudaKernel<false>, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_zero_pad", BorderCudaKernel<true>, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_crop", BorderCudaKernel<false>, GT_IS_ACTIVATION("x"));

}  // namespace

}  // namespace graph_train
