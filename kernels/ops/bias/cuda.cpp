// graph_train_add_bias and its gradient on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/bias/bias.h"

namespace graph_train {

namespace {

constexpr unsigned int kMostRowBlocks = 65535;

class AddBiasCudaKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto shape = view_of(ctx, "x");
    if (shape.elem_cnt() == 0) return;
    const BiasArgs args{data_of<void>(ctx, "x"), data_of(ctx, "bias"), result_of<void>(ctx), shape.Count(0, 3),
                        shape.At(3), integers_of(ctx).at(1) != 0};
    const bool widens = type_of(ctx, "x") != type_of(ctx, "out");
    const std::string name = cuda::name_of(widens ? "add_bias_to_f32" : "add_bias", type_of(ctx, "x"));
    cuda::launch(cuda::queue_of(ctx), name, cuda::blocks_for(shape.elem_cnt(), kBiasThreads), kBiasThreads, args);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

int64_t row_blocks(int64_t rows) { return (rows + kBiasRows - 1) / kBiasRows; }

class AddBiasGradCudaKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto shape = view_of(ctx, "dy");
    const int64_t rows = shape.Count(0, 3), channels = shape.At(3);
    const cuda::Queue queue = cuda::queue_of(ctx);
    float* d_bias = result_of(ctx, "out", 1);
    if (shape.elem_cnt() == 0) return cuda::set_zero(queue, d_bias, channels * sizeof(float));
    const BiasGradArgs args{data_of(ctx, "dy"), result_of<void>(ctx), result_of(ctx, "tmp_buffer"), d_bias, rows,
                            channels, row_blocks(rows)};
    cuda::Size grid = cuda::blocks_for(channels, kBiasThreads);
    grid.y = static_cast<unsigned int>(std::min<int64_t>(args.blocks, kMostRowBlocks));
    cuda::launch(queue, cuda::name_of("bias_sums", type_of(ctx, "out")), grid, kBiasThreads, args);
    cuda::launch(queue, "bias_total", cuda::blocks_for(channels, kBiasThreads), kBiasThreads, args);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return true; }
};

size_t partial_bytes(user_op::InferContext* ctx) {
  const auto& shape = ctx->InputTensorDesc("dy", 0).shape();
  return row_blocks(shape.Count(0, 3)) * shape.At(3) * sizeof(float);
}

const auto kSum = GT_IS_ACTIVATION("x") && (GT_IS_FLOAT("out") || GT_IS_BFLOAT16("out") || GT_IS_HALF("out"));
GT_CUDA_KERNEL("graph_train_add_bias", AddBiasCudaKernel, kSum);
GT_CUDA_KERNEL("graph_train_add_bias_grad", AddBiasGradCudaKernel, GT_IS_FLOAT("dy") && GT_IS_ACTIVATION("out"))
    .SetInferTmpSizeFn(partial_bytes);

}  // namespace

}  // namespace graph_train
