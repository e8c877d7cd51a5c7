// Self-attention on CUDA: one launch forward, two backward.
#include "native/cuda/launch.h"
#include "ops/attention/call.h"

namespace graph_train {

namespace {

void launch(user_op::KernelComputeContext* ctx, const char* kernel, const AttentionArgs& args) {
  const auto blocks = static_cast<unsigned int>(args.shape.rows());
  cuda::launch(cuda::queue_of(ctx), cuda::name_of(kernel, type_of(ctx, "x")), {blocks}, kAttentionThreads, args);
}

class AttentionCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const AttentionArgs args = attention_args(ctx, false);
    if (args.shape.rows() > 0) launch(ctx, "attention", args);
  }
};

size_t bytes_of_scores(user_op::InferContext* ctx) {
  return std::max<int64_t>(1, ctx->InputShape("map", 0).elem_cnt()) * sizeof(float);
}

class AttentionGradCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    AttentionArgs args = attention_args(ctx, true);
    if (args.shape.rows() == 0) return;
    args.d_scores = result_of(ctx, "tmp_buffer");
    launch(ctx, "attention_query_grad", args);
    launch(ctx, "attention_key_grad", args);
  }
};

GT_CUDA_KERNEL("graph_train_attention", AttentionCudaKernel, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_attention_grad", AttentionGradCudaKernel, GT_IS_ACTIVATION("x"))
    .SetInferTmpSizeFn(bytes_of_scores);

}  // namespace

}  // namespace graph_train
