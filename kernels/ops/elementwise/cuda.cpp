// OneFlow's ops add_n, cast between the types of activations, and ones_like on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/elementwise/elementwise.h"

namespace graph_train {

namespace {

cuda::Size elementwise_grid(int64_t count) { return cuda::blocks_for(count, kElementwiseThreads * kPerThread); }

class AddNCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    AddArgs args{};
    args.out = result_of<void>(ctx);
    args.count = view_of(ctx, "out").elem_cnt();
    if (args.count == 0) return;
    // If there are more summands than a launch supports, the next launch adds to the previous sum.
    const auto summands = static_cast<int>(ctx->inputs().size());
    for (int first = 0; first < summands;) {
      args.summands = 0;
      if (first > 0) args.inputs[args.summands++] = args.out;
      while (first < summands && args.summands < kMaxSummands) {
        args.inputs[args.summands++] = data_of<void>(ctx, "in", first++);
      }
      cuda::launch(cuda::queue_of(ctx), cuda::name_of("add_n", type_of(ctx, "out")), elementwise_grid(args.count),
                   kElementwiseThreads, args);
    }
  }
};

class CastCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const CastArgs args{data_of<void>(ctx, "in"), result_of<void>(ctx), view_of(ctx, "in").elem_cnt()};
    if (args.count == 0) return;
    const std::string name = cuda::name_of(cuda::name_of("cast", type_of(ctx, "in")).c_str(), type_of(ctx, "out"));
    cuda::launch(cuda::queue_of(ctx), name, elementwise_grid(args.count), kElementwiseThreads, args);
  }
};

class OnesLikeCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const FillArgs args{result_of<void>(ctx), view_of(ctx, "out").elem_cnt(), 1.0f};
    if (args.count == 0) return;
    cuda::launch(cuda::queue_of(ctx), "fill_f32", elementwise_grid(args.count), kElementwiseThreads, args);
  }
};

// "out" may be the memory of input 0: each element is read and written by the same thread.
oneflow::Maybe<void> sum_into_first(const user_op::InferContext&, const user_op::AddInplaceArgPair& add_pair) {
  return add_pair("out", 0, "in", 0, true);
}

const auto kToOrFromFloat = (GT_IS_FLOAT("in") && (GT_IS_BFLOAT16("out") || GT_IS_HALF("out")))
                            || (GT_IS_FLOAT("out") && (GT_IS_BFLOAT16("in") || GT_IS_HALF("in")));

GT_CUDA_KERNEL("add_n", AddNCudaKernel, GT_IS_ACTIVATION("out")).SetInplaceProposalFn(sum_into_first);
GT_CUDA_KERNEL("cast", CastCudaKernel, kToOrFromFloat);
GT_CUDA_KERNEL("ones_like", OnesLikeCudaKernel, GT_IS_FLOAT("out"));

}  // namespace

}  // namespace graph_train
