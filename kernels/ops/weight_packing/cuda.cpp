// Packing and unpacking convolution weights on CUDA.
#include <vector>

#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/weight_packing/weight_packing.h"

namespace graph_train {

namespace {

template<bool kPack>
class PackCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    std::vector<PackedWeight> weights;
    int64_t blocks = 0;
    for (const auto& [name, index] : ctx->inputs()) {
      const oneflow::ShapeView& shape = view_of(ctx, name, index);
      if (shape.elem_cnt() == 0) continue;
      const int64_t taps = kPack ? shape.Count(2) : shape.Count(1, 3);
      weights.push_back({data_of<void>(ctx, name, index), result_of<void>(ctx, "out", index), shape.elem_cnt(), blocks,
                         static_cast<int32_t>(shape.At(kPack ? 1 : 3)), static_cast<int32_t>(taps)});
      blocks += cuda::blocks_for(shape.elem_cnt(), kPackThreads * kPackPerThread).x;
    }
    if (weights.empty()) return;
    const cuda::Queue queue = cuda::queue_of(ctx);
    const PackArgs args{cuda::device_table(queue, weights), static_cast<int32_t>(weights.size())};
    const std::string kernel = kPack ? cuda::name_of("pack_weights", type_of(ctx, "out"))
                                     : cuda::name_of("unpack_weights", type_of(ctx, "gradient"));
    cuda::launch(queue, kernel, {static_cast<unsigned int>(blocks)}, kPackThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_pack_weights", PackCudaKernel<true>, GT_IS_ACTIVATION("out"));
GT_CUDA_KERNEL("graph_train_unpack_weights", PackCudaKernel<false>, GT_IS_ACTIVATION("gradient"));

}  // namespace

}  // namespace graph_train
