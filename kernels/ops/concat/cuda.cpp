// OneFlow's ops concat and split_like on CUDA: one launch for any number of tensors.
#include <vector>

#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/concat/concat.h"

namespace graph_train {

namespace {

// Appends one tensor; widths are in bytes here.
void add_piece(const user_op::Tensor* tensor, void* data, int64_t axis, ConcatArgs* args,
               std::vector<ConcatPiece>* pieces) {
  const int64_t bytes = oneflow::GetSizeOfDataType(tensor->data_type());
  const int64_t width = tensor->shape_view().Count(axis) * bytes;
  if (width == 0) return;
  pieces->push_back({data, args->width, width});
  args->width += width;
  args->rows = tensor->shape_view().elem_cnt() * bytes / width;
}

// The largest unit, in bytes, that divides all addresses and widths.
int64_t unit_of(const void* joined, const std::vector<ConcatPiece>& pieces) {
  auto bits = reinterpret_cast<uint64_t>(joined) | 16;
  for (const ConcatPiece& piece : pieces) {
    bits |= reinterpret_cast<uint64_t>(piece.data) | static_cast<uint64_t>(piece.width);
  }
  return static_cast<int64_t>(bits & -bits);
}

void launch_copies(user_op::KernelComputeContext* ctx, const char* kernel, ConcatArgs* args,
                   std::vector<ConcatPiece>* pieces) {
  if (pieces->empty() || args->rows == 0) return;
  const int64_t unit = unit_of(args->joined, *pieces);
  args->width /= unit;
  for (ConcatPiece& piece : *pieces) {
    piece.offset /= unit;
    piece.width /= unit;
  }
  const cuda::Queue queue = cuda::queue_of(ctx);
  args->number = static_cast<int32_t>(pieces->size());
  if (args->number <= kConcatInline) {
    std::copy(pieces->begin(), pieces->end(), args->pieces);
  } else {
    args->table = cuda::device_table(queue, *pieces);
  }
  cuda::launch(queue, std::string(kernel) + "_" + std::to_string(unit),
               cuda::blocks_for(args->rows * args->width, kConcatThreads), kConcatThreads, *args);
}

class ConcatCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    ConcatArgs args{};
    std::vector<ConcatPiece> pieces;
    for (const auto& [name, index] : ctx->inputs()) {
      const auto* tensor = ctx->Tensor4ArgNameAndIndex(name, index);
      add_piece(tensor, const_cast<void*>(tensor->dptr<void>()), ctx->Attr<int64_t>("axis"), &args, &pieces);
    }
    args.joined = result_of<void>(ctx);
    launch_copies(ctx, "concat", &args, &pieces);
  }
};

class SplitLikeCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    ConcatArgs args{};
    std::vector<ConcatPiece> pieces;
    for (const auto& [name, index] : ctx->outputs()) {
      auto* tensor = ctx->Tensor4ArgNameAndIndex(name, index);
      add_piece(tensor, tensor->mut_dptr<void>(), ctx->Attr<int64_t>("axis"), &args, &pieces);
    }
    args.joined = const_cast<void*>(data_of<void>(ctx, "in"));
    launch_copies(ctx, "split", &args, &pieces);
  }
};

// Tensors whose shape is only known at run time stay with OneFlow's own kernels, which set it.
auto is_static(const std::string& arg) {
  return oneflow::hob::make_custom("static shapes", [arg](const user_op::KernelRegContext& ctx) {
    return !ctx.TensorDesc4ArgNameAndIndex(arg, 0)->is_dynamic();
  });
}

// Activations, and images.
const auto kCopied = GT_IS_ACTIVATION("out") || oneflow::user_op::HobDataType("out", 0) == oneflow::DataType::kUInt8;

GT_CUDA_KERNEL("concat", ConcatCudaKernel, kCopied&& is_static("out"));
GT_CUDA_KERNEL("split_like", SplitLikeCudaKernel, kCopied&& is_static("in"));

}  // namespace

}  // namespace graph_train
