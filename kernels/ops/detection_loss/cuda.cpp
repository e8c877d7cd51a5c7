// The detection loss and the weights of its levels on CUDA.
#include "native/cuda/launch.h"
#include "ops/detection_loss/call.h"
#include "ops/detection_loss/launch.h"
#include "ops/detection_loss/rebalance.h"

namespace graph_train {

namespace {

constexpr size_t kCountBytes = sizeof(int64_t) * kMaxLevels * kMaxLossBlocks;

size_t infer_scratch(user_op::InferContext* ctx) {
  const auto levels = static_cast<int64_t>(ctx->input_size("map"));
  const int64_t anchors = anchors_of(ctx->InputShape("settings", 0).elem_cnt(), levels);
  int64_t tiles = 0;
  for (int32_t level = 0; level < levels; ++level) {
    const auto& map = ctx->InputShape("map", level);
    tiles += map.At(0) * tiles_of_image(map.At(1) * map.At(2) * anchors);
  }
  return kCountBytes + sizeof(LossSums) * tiles;
}

class DetectionLossCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const cuda::Queue queue = cuda::queue_of(ctx);
    const auto levels = levels_of(ctx);
    const LocalImages images = local_images(ctx);
    LossArgs args{};
    for (const LossLevel& level : levels) {
      const int index = args.level_count++;
      args.levels[index] = level;
      args.first_tile[index + 1] = args.first_tile[index] + images.count * tiles_of_image(level.cells());
    }
    args.first_image = images.first;
    args.batch = images.batch;
    args.slots = static_cast<int32_t>(view_of(ctx, "labels").At(1));
    args.labels = data_of(ctx, "labels");
    args.settings = data_of(ctx, "settings");
    args.balance = data_of(ctx, "balance");
    args.scale = data_of(ctx, "scale");
    args.total = result_of(ctx, "out", 0);
    args.parts = result_of(ctx, "out", 1);
    auto* scratch = ctx->Tensor4ArgNameAndIndex("tmp_buffer", 0)->mut_dptr<char>();
    args.counts = reinterpret_cast<int64_t*>(scratch);
    args.sums = reinterpret_cast<LossSums*>(scratch + kCountBytes);
    args.grid_counters = cuda::grid_counters(queue);
    const int64_t tiles = args.first_tile[args.level_count];
    cuda::launch_cooperative(queue, "detection_loss", std::min<int64_t>(tiles, kMaxLossBlocks), kLossThreads, args);
  }
};

class RebalanceCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const RebalanceArgs args{ctx->Tensor4ArgNameAndIndex("balance", 0)->mut_dptr<float>(), data_of(ctx, "parts"),
                             result_of(ctx), static_cast<int32_t>(view_of(ctx, "balance").elem_cnt()),
                             static_cast<int32_t>(integers_of(ctx).at(0))};
    cuda::launch(cuda::queue_of(ctx), "rebalance_levels", {}, 32, args);
  }
};

GT_CUDA_KERNEL("graph_train_detection_loss", DetectionLossCudaKernel, GT_IS_FLOAT("map"))
    .SetInferTmpSizeFn(infer_scratch);
GT_CUDA_KERNEL("graph_train_rebalance", RebalanceCudaKernel, GT_IS_FLOAT("balance"));

}  // namespace

}  // namespace graph_train
