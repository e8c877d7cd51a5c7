// Our upsampling and max pooling on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/pooling/pooling.h"

namespace graph_train {

namespace {

template<typename Args>
void launch(user_op::KernelComputeContext* ctx, const char* kernel, int64_t pixels, int64_t channels,
            const Args& args) {
  const int64_t threads = pixels * ((channels + kPoolPerThread - 1) / kPoolPerThread);
  if (threads == 0) return;
  cuda::launch(cuda::queue_of(ctx), cuda::name_of(kernel, type_of(ctx, "out")), cuda::blocks_for(threads, kPoolThreads),
               kPoolThreads, args);
}

template<bool kGradient>
class UpsampleCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& small = view_of(ctx, kGradient ? "out" : "in");
    const UpsampleArgs args{
        data_of<void>(ctx, "in"), result_of<void>(ctx), small.At(0) * small.At(1), small.At(2), small.At(3),
        integers_of(ctx).at(0)};
    launch(ctx, kGradient ? "upsample_grad" : "upsample", args.rows * args.columns, args.channels, args);
  }
};

PoolArgs pool_args(user_op::KernelComputeContext* ctx, const oneflow::ShapeView& x, const oneflow::ShapeView& y) {
  PoolArgs args{};
  const auto& integers = integers_of(ctx);
  args.shape = {y.At(0), x.At(1), x.At(2), x.At(3), y.At(1), y.At(2), integers.at(0), integers.at(1), integers.at(2)};
  return args;
}

class MaxPoolCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    PoolArgs args = pool_args(ctx, view_of(ctx, "x"), view_of(ctx, "out"));
    args.in = data_of<void>(ctx, "x");
    args.out = result_of<void>(ctx, "out", 0);
    args.where = result_of<int32_t>(ctx, "out", 1);
    launch(ctx, "max_pool", args.shape.batch * args.shape.out_rows * args.shape.out_columns, args.shape.channels, args);
  }
};

class MaxPoolGradCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    PoolArgs args = pool_args(ctx, view_of(ctx, "out"), view_of(ctx, "dy"));
    args.in = data_of<void>(ctx, "dy");
    args.out = result_of<void>(ctx);
    args.where = const_cast<int32_t*>(data_of<int32_t>(ctx, "where"));
    launch(ctx, "max_pool_grad", args.shape.batch * args.shape.rows * args.shape.columns, args.shape.channels, args);
  }
};

GT_CUDA_KERNEL("graph_train_upsample", UpsampleCudaKernel<false>, GT_IS_ACTIVATION("in"));
GT_CUDA_KERNEL("graph_train_upsample_grad", UpsampleCudaKernel<true>, GT_IS_ACTIVATION("in"));
GT_CUDA_KERNEL("graph_train_max_pool", MaxPoolCudaKernel, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_max_pool_grad", MaxPoolGradCudaKernel, GT_IS_ACTIVATION("dy"));

}  // namespace

}  // namespace graph_train
