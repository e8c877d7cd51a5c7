// Overlap of matched box pairs and its gradient on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/bbox_iou/launch.h"

namespace graph_train {

namespace {

// What values and gradients have in common.
BoxIouArgs common_args(user_op::KernelComputeContext* ctx, int64_t pairs) {
  BoxIouArgs args{};
  args.box1 = data_of(ctx, "box1");
  args.box2 = data_of(ctx, "box2");
  args.out1 = result_of(ctx);
  args.pairs = pairs;
  args.eps = floats_of(ctx).at(0);
  args.centre_form = integers_of(ctx).at(1) != 0;
  args.kind = static_cast<IouKind>(integers_of(ctx).at(0));
  return args;
}

void launch_pairs(user_op::KernelComputeContext* ctx, const char* kernel, const BoxIouArgs& args) {
  if (args.pairs == 0) return;
  cuda::launch(cuda::queue_of(ctx), kernel, cuda::blocks_for(args.pairs, kBoxThreads), kBoxThreads, args);
}

class BoxIouCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    launch_pairs(ctx, "bbox_iou", common_args(ctx, view_of(ctx, "out").elem_cnt()));
  }
};

class BoxIouGradCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    BoxIouArgs args = common_args(ctx, view_of(ctx, "grad").elem_cnt());
    args.grad = data_of(ctx, "grad");
    if (view_of(ctx, "out").At(0) == 2) args.out2 = args.out1 + 4 * args.pairs;
    launch_pairs(ctx, "bbox_iou_grad", args);
  }
};

GT_CUDA_KERNEL("graph_train_bbox_iou", BoxIouCudaKernel, GT_IS_FLOAT("box1"));
GT_CUDA_KERNEL("graph_train_bbox_iou_grad", BoxIouGradCudaKernel, GT_IS_FLOAT("box1"));

}  // namespace

}  // namespace graph_train
