// Activation functions and their gradients on CUDA.
#include "native/cuda/launch.h"
#include "ops/activation_function/call.h"

namespace graph_train {

namespace {

template<bool kGradient>
class ActivateCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const ActivateArgs args = activate_args(ctx, kGradient);
    if (args.count == 0) return;
    cuda::launch(cuda::queue_of(ctx), cuda::name_of(kGradient ? "activate_grad" : "activate", type_of(ctx, "x")),
                 cuda::blocks_for(args.count, kActivateThreads * kActivatePerThread), kActivateThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_activate", ActivateCudaKernel<false>, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_activate_grad", ActivateCudaKernel<true>, GT_IS_ACTIVATION("x"));

}  // namespace

}  // namespace graph_train
