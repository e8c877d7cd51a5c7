// Concatenates flattened tensors on the CPU.
#include <cstring>

#include "ops/flatten/pieces.h"

namespace graph_train {

namespace {

class FlattenKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto pieces = flat_pieces(ctx, "tensor");
    float* const out = result_of(ctx);
    parallel_for(static_cast<int64_t>(pieces.size()), 16, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const FlatPiece& piece = pieces[index];
        if (piece.count > 0) std::memcpy(out + piece.start, piece.from, sizeof(float) * piece.count);
      }
    });
  }
};

GT_CPU_KERNEL("graph_train_flatten", FlattenKernel, GT_IS_FLOAT("tensor"));

}  // namespace

}  // namespace graph_train
