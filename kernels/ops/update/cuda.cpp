// The update of all parameters on CUDA.
#include "native/cuda/launch.h"
#include "ops/update/launch.h"
#include "ops/update/pieces.h"

namespace graph_train {

namespace {

size_t infer_scratch(user_op::InferContext* ctx) {
  int64_t pieces = 0;
  for (int32_t index = 0; index < ctx->input_size("parameter"); ++index) {
    pieces += (ctx->InputShape("parameter", index).elem_cnt() + kUpdatePiece - 1) / kUpdatePiece;
  }
  return sizeof(double) * std::max<int64_t>(1, pieces);
}

class UpdateCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const cuda::Queue queue = cuda::queue_of(ctx);
    const auto pieces = cut_into_pieces(ctx, kUpdatePiece);
    UpdateArgs args{};
    args.pieces = cuda::device_table(queue, pieces);
    args.count = static_cast<int64_t>(pieces.size());
    args.hyper = data_of(ctx, "hyper");
    args.out = result_of(ctx);
    args.squares = ctx->Tensor4ArgNameAndIndex("tmp_buffer", 0)->mut_dptr<double>();
    args.grid_counters = cuda::grid_counters(queue);
    args.rule = rule_of(ctx);
    args.max_norm = floats_of(ctx).at(0);
    cuda::launch_cooperative(queue, "update_parameters", args.count, kUpdateThreads, args);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return true; }
};

GT_CUDA_KERNEL("graph_train_update_sgd", UpdateCudaKernel, GT_IS_FLOAT("hyper")).SetInferTmpSizeFn(infer_scratch);
GT_CUDA_KERNEL("graph_train_update_adam", UpdateCudaKernel, GT_IS_FLOAT("hyper")).SetInferTmpSizeFn(infer_scratch);

}  // namespace

}  // namespace graph_train
