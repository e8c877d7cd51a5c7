// Our BatchNorm ops on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/batch_norm/batch_norm.h"

namespace graph_train {

namespace {

// Minimum number of rows per thread; fewer are not worth another block.
constexpr int64_t kRowsPerThread = 4;

NormArgs args_of(user_op::KernelComputeContext* ctx) {
  NormArgs args{};
  const oneflow::ShapeView& x = view_of(ctx, "x");
  args.x = data_of<void>(ctx, "x");
  args.rows = x.Count(0, 3);
  args.channels = x.At(3);
  args.pixels = static_cast<double>(args.rows);
  args.statistics_of_batch = true;
  return args;
}

void set_parameters(user_op::KernelComputeContext* ctx, NormArgs* args) {
  args->gamma = data_of(ctx, "gamma");
  args->beta = data_of(ctx, "beta");
}

void set_moving(user_op::KernelComputeContext* ctx, NormArgs* args) {
  args->moving_mean = result_of(ctx, "moving_mean");
  args->moving_variance = result_of(ctx, "moving_variance");
  args->epsilon = floats_of(ctx).at(0);
  args->rate = floats_of(ctx).at(1);
}

void set_gradient(user_op::KernelComputeContext* ctx, NormArgs* args) {
  set_parameters(ctx, args);
  args->dy = data_of<void>(ctx, "dy");
  args->statistics = const_cast<float*>(data_of(ctx, "statistics"));
}

int64_t max_blocks(int64_t rows, int64_t channels) {
  const NormPieces whole = norm_pieces(rows, channels, 1);
  const int64_t rows_of_block = whole.lanes * kRowsPerThread;
  const int64_t parts = std::max<int64_t>(1, (rows + rows_of_block - 1) / rows_of_block);
  return whole.tiles * parts;
}

// Cooperative launch, with memory for the sums of each block.
void launch_with_sums(user_op::KernelComputeContext* ctx, const char* kernel, NormArgs* args) {
  const cuda::Queue queue = cuda::queue_of(ctx);
  args->partial_sums = result_of(ctx, "tmp_buffer");
  args->counters = cuda::grid_counters(queue);
  const int64_t blocks = std::min(kNormMaxBlocks, max_blocks(args->rows, args->channels));
  cuda::launch_cooperative(queue, cuda::name_of(kernel, type_of(ctx, "x")), blocks, kNormThreads, *args);
}

size_t bytes_of_sums(user_op::InferContext* ctx) {
  const oneflow::Shape& x = ctx->InputShape("x", 0);
  const int64_t blocks = std::min(kNormMaxBlocks, max_blocks(x.Count(0, 3), x.At(3)));
  return norm_pieces(x.Count(0, 3), x.At(3), blocks).parts * 2 * x.At(3) * sizeof(float);
}

// Launch with one block per piece.
void launch_pieces(user_op::KernelComputeContext* ctx, const char* kernel, const NormArgs& args) {
  const auto blocks = static_cast<unsigned int>(max_blocks(args.rows, args.channels));
  cuda::launch(cuda::queue_of(ctx), cuda::name_of(kernel, type_of(ctx, "x")), {blocks}, kNormThreads, args);
}

void set_zero(user_op::KernelComputeContext* ctx, float* memory, int64_t count) {
  cuda::set_zero(cuda::queue_of(ctx), memory, count * sizeof(float));
}

class BatchNormCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    set_parameters(ctx, &args);
    set_moving(ctx, &args);
    args.out = result_of<void>(ctx, "out", 0);
    args.statistics = result_of(ctx, "out", 1);
    args.silu = integers_of(ctx).at(1) != 0;
    if (args.rows == 0) return set_zero(ctx, args.statistics, 2 * args.channels);
    if (integers_of(ctx).at(0) != 0) return launch_with_sums(ctx, "batch_norm", &args);
    args.mean = args.moving_mean;
    args.variance = args.moving_variance;
    args.moving_mean = args.moving_variance = nullptr;
    launch_pieces(ctx, "normalise", args);
  }
};

class BatchNormGradCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    set_gradient(ctx, &args);
    args.out = result_of<void>(ctx, "out", 0);
    args.d_gamma = result_of(ctx, "out", 1);
    args.d_beta = result_of(ctx, "out", 2);
    args.statistics_of_batch = integers_of(ctx).at(0) != 0;
    args.silu = integers_of(ctx).at(1) != 0;
    if (args.rows > 0) return launch_with_sums(ctx, "batch_norm_grad", &args);
    set_zero(ctx, args.d_gamma, args.channels);
    set_zero(ctx, args.d_beta, args.channels);
  }
};

class ChannelMeanCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    args.pixels = static_cast<double>(integers_of(ctx).at(0));
    args.statistics = result_of(ctx);
    if (args.rows == 0) return set_zero(ctx, args.statistics, args.channels);
    launch_with_sums(ctx, "channel_mean", &args);
  }
};

class ChannelVarianceCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    args.pixels = static_cast<double>(integers_of(ctx).at(0));
    args.mean = data_of(ctx, "mean");
    args.statistics = result_of(ctx);
    if (args.rows == 0) return set_zero(ctx, args.statistics, args.channels);
    launch_with_sums(ctx, "channel_variance", &args);
  }
};

// A rank without rows also stores and updates the statistics.
class NormaliseCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    set_parameters(ctx, &args);
    set_moving(ctx, &args);
    args.pixels = static_cast<double>(integers_of(ctx).at(0));
    args.silu = integers_of(ctx).at(1) != 0;
    args.mean = data_of(ctx, "mean");
    args.variance = data_of(ctx, "variance");
    args.out = result_of<void>(ctx, "out", 0);
    args.statistics = result_of(ctx, "out", 1);
    launch_pieces(ctx, "normalise", args);
  }
};

class NormaliseSumsCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    set_gradient(ctx, &args);
    args.silu = integers_of(ctx).at(0) != 0;
    args.both = result_of(ctx, "out", 0);
    args.d_gamma = result_of(ctx, "out", 1);
    args.d_beta = result_of(ctx, "out", 2);
    if (args.rows > 0) return launch_with_sums(ctx, "normalise_sums", &args);
    set_zero(ctx, args.both, 2 * args.channels);
    set_zero(ctx, args.d_gamma, args.channels);
    set_zero(ctx, args.d_beta, args.channels);
  }
};

class NormaliseGradCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    NormArgs args = args_of(ctx);
    set_gradient(ctx, &args);
    args.pixels = static_cast<double>(integers_of(ctx).at(0));
    args.silu = integers_of(ctx).at(1) != 0;
    args.both = const_cast<float*>(data_of(ctx, "total_sums"));
    args.out = result_of<void>(ctx);
    if (args.rows > 0) launch_pieces(ctx, "normalise_grad", args);
  }
};

GT_CUDA_KERNEL("graph_train_batch_norm", BatchNormCudaKernel, GT_IS_ACTIVATION("x")).SetInferTmpSizeFn(bytes_of_sums);
GT_CUDA_KERNEL("graph_train_batch_norm_grad", BatchNormGradCudaKernel, GT_IS_ACTIVATION("x"))
    .SetInferTmpSizeFn(bytes_of_sums);
GT_CUDA_KERNEL("graph_train_channel_mean", ChannelMeanCudaKernel, GT_IS_ACTIVATION("x"))
    .SetInferTmpSizeFn(bytes_of_sums);
GT_CUDA_KERNEL("graph_train_channel_variance", ChannelVarianceCudaKernel, GT_IS_ACTIVATION("x"))
    .SetInferTmpSizeFn(bytes_of_sums);
GT_CUDA_KERNEL("graph_train_normalise", NormaliseCudaKernel, GT_IS_ACTIVATION("x"));
GT_CUDA_KERNEL("graph_train_normalise_sums", NormaliseSumsCudaKernel, GT_IS_ACTIVATION("x"))
    .SetInferTmpSizeFn(bytes_of_sums);
GT_CUDA_KERNEL("graph_train_normalise_grad", NormaliseGradCudaKernel, GT_IS_ACTIVATION("x"));

}  // namespace

}  // namespace graph_train
