// Decoding and suppression on CUDA.
#include "native/cuda/launch.h"
#include "ops/detections/call.h"
#include "ops/detections/launch.h"

namespace graph_train {

namespace {

class DecodeCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const DecodeArgs args = decode_args(ctx);
    const int64_t numbers = args.images * args.predictions * args.outputs;
    if (numbers == 0) return;
    cuda::launch(cuda::queue_of(ctx), "decode", cuda::blocks_for(numbers, kDecodeThreads), kDecodeThreads, args);
  }
};

// Capacity for the keys of one image: the maximum number of candidates, rounded up to a power of 2 for sorting.
int64_t key_capacity(int64_t boxes, int64_t classes, int64_t max_candidates) {
  const int64_t most = std::min(boxes * classes, max_candidates);
  int64_t capacity = 1;
  while (capacity < most) capacity *= 2;
  return capacity;
}

// 16 bytes: alignment of the boxes behind the keys.
int64_t key_bytes(int64_t images, int64_t capacity) {
  return (images * capacity * static_cast<int64_t>(sizeof(uint64_t)) + 15) / 16 * 16;
}

size_t infer_scratch(user_op::InferContext* ctx) {
  const auto& shape = ctx->InputShape("predictions", 0);
  const auto& integers = integers_of(ctx);
  const int64_t capacity = key_capacity(shape.At(1), shape.At(2) - 5, integers.at(kMaxCandidates));
  return key_bytes(shape.At(0), capacity) + shape.At(0) * integers.at(kMaxDetections) * sizeof(Box<float>);
}

class SuppressCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const cuda::Queue queue = cuda::queue_of(ctx);
    const auto shape = view_of(ctx, "predictions");
    if (shape.At(0) == 0) return;
    SuppressArgs args{};
    args.settings = suppression_settings(ctx);
    const auto wanted = wanted_classes(ctx, args.settings.classes);
    if (!wanted.empty()) args.settings.wanted = cuda::device_table(queue, wanted);
    args.predictions = data_of(ctx, "predictions");
    args.boxes = shape.At(1);
    args.capacity = key_capacity(shape.At(1), args.settings.classes, args.settings.max_candidates);
    auto* scratch = ctx->Tensor4ArgNameAndIndex("tmp_buffer", 0)->mut_dptr<char>();
    args.keys = reinterpret_cast<uint64_t*>(scratch);
    args.kept = reinterpret_cast<Box<float>*>(scratch + key_bytes(shape.At(0), args.capacity));
    args.detections = result_of(ctx, "out", 0);
    args.counts = result_of<int32_t>(ctx, "out", 1);
    cuda::launch(queue, "suppress", {static_cast<unsigned int>(shape.At(0))}, kSuppressThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_decode", DecodeCudaKernel, GT_IS_FLOAT("anchors_cells"));
GT_CUDA_KERNEL("graph_train_suppress", SuppressCudaKernel, GT_IS_FLOAT("predictions")).SetInferTmpSizeFn(infer_scratch);

}  // namespace

}  // namespace graph_train
