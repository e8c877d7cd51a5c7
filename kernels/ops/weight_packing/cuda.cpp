// graph_train_pack_weights and graph_train_unpack_weights on CUDA: one launch for all weights.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/weight_packing/weight_packing.h"

namespace graph_train {

namespace {

// `channel_axis`: of the inputs' channels, 1 when they are plain and 3 when they are packed.
std::vector<PackedWeight> table_of(user_op::KernelComputeContext* ctx, const char* input, int channel_axis,
                                   int64_t* total) {
  std::vector<PackedWeight> table;
  for (int32_t i = 0; i < ctx->input_size(input); ++i) {
    const auto shape = view_of(ctx, input, i);
    const int64_t count = shape.elem_cnt(), channels = shape.At(channel_axis);
    if (count == 0) continue;
    void* given = const_cast<void*>(data_of<void>(ctx, input, i));
    void* made = result_of<void>(ctx, "out", i);
    const bool packs = channel_axis == 1;
    table.push_back({packs ? given : made, packs ? made : given, *total, count, static_cast<int32_t>(channels),
                     static_cast<int32_t>(count / shape.At(0) / channels)});
    *total += count;
  }
  return table;
}

void run(user_op::KernelComputeContext* ctx, const char* kernel, const char* input, int channel_axis,
         oneflow::DataType type) {
  int64_t total = 0;
  const std::vector<PackedWeight> table = table_of(ctx, input, channel_axis, &total);
  if (total == 0) return;
  const cuda::Queue queue = cuda::queue_of(ctx);
  const PackArgs args{cuda::device_table(queue, table), total, static_cast<int32_t>(table.size())};
  cuda::launch(queue, cuda::name_of(kernel, type), cuda::blocks_for(total, kPackThreads * kPackedPerThread), kPackThreads,
               args);
}

class PackWeightsCudaKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    run(ctx, "pack_weights", "weight", 1, type_of(ctx, "out"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

class UnpackWeightsCudaKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    run(ctx, "unpack_weights", "gradient", 3, type_of(ctx, "gradient"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CUDA_KERNEL("graph_train_pack_weights", PackWeightsCudaKernel, GT_IS_ACTIVATION("out"));
GT_CUDA_KERNEL("graph_train_unpack_weights", UnpackWeightsCudaKernel, GT_IS_ACTIVATION("gradient"));

}  // namespace

}  // namespace graph_train
