// Our bias op and its gradient on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/bias/bias.h"

namespace graph_train {

namespace {

std::string name_of(const char* kernel, oneflow::DataType from, oneflow::DataType to) {
  return cuda::name_of(cuda::name_of(kernel, from).c_str(), to);
}

class AddBiasCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& shape = view_of(ctx, "x");
    const AddBiasArgs args{data_of<void>(ctx, "x"), data_of(ctx, "bias"), result_of<void>(ctx),
                           shape.elem_cnt(),        shape.At(3),          integers_of(ctx).at(1) != 0};
    if (args.count == 0) return;
    cuda::launch(cuda::queue_of(ctx), name_of("add_bias", type_of(ctx, "x"), type_of(ctx, "out")),
                 cuda::blocks_for(args.count, kBiasThreads * kBiasPerThread), kBiasThreads, args);
  }
};

int64_t parts_of(int64_t rows) {
  const int64_t rows_of_block = kBiasLanes * kBiasRowsPerThread;
  return std::max<int64_t>(1, std::min(kBiasMaxParts, (rows + rows_of_block - 1) / rows_of_block));
}

size_t bytes_of_sums(user_op::InferContext* ctx) {
  const oneflow::Shape& dy = ctx->InputShape("dy", 0);
  return parts_of(dy.Count(0, 3)) * dy.At(3) * sizeof(float);
}

class AddBiasGradCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& shape = view_of(ctx, "dy");
    const int64_t rows = shape.Count(0, 3), channels = shape.At(3);
    const AddBiasGradArgs args{data_of<void>(ctx, "dy"),
                               result_of<void>(ctx, "out", 0),
                               result_of(ctx, "tmp_buffer"),
                               result_of(ctx, "out", 1),
                               rows,
                               channels,
                               parts_of(rows)};
    const cuda::Queue queue = cuda::queue_of(ctx);
    if (rows == 0) return cuda::set_zero(queue, args.d_bias, channels * sizeof(float));
    const auto groups = static_cast<unsigned int>((channels + kBiasColumns - 1) / kBiasColumns);
    cuda::launch(queue, name_of("add_bias_grad", type_of(ctx, "dy"), type_of(ctx, "out")),
                 {static_cast<unsigned int>(args.parts), groups}, kBiasThreads, args);
    cuda::launch(queue, "add_bias_sums", {static_cast<unsigned int>(channels)}, kBiasThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_add_bias", AddBiasCudaKernel, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_add_bias_grad", AddBiasGradCudaKernel, GT_IS_ACTIVATION("dy"))
    .SetInferTmpSizeFn(bytes_of_sums);

}  // namespace

}  // namespace graph_train
