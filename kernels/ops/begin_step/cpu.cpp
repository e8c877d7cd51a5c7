// Beginning of a step on the CPU.
#include "native/common.h"

// Products and sums are rounded separately.
#include "native/exact_rounding.h"
#include "ops/begin_step/args.h"

namespace graph_train {

namespace {

class BeginStepKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const BeginStepArgs args = begin_step_args(ctx);
    const float* const row = selected_row(args);
    for (int64_t index = 0; index < args.size; ++index) copy_scalar(args, row, index);
    const float weight = row[args.size - 1];
    for (const FlatPiece& piece : flat_pieces(ctx, "current")) {
      for (int64_t i = 0; i < piece.count; ++i) {
        float* const average = args.average + piece.start + i;
        *average = updated_average(*average, piece.from[i], weight);
      }
    }
  }
};

GT_CPU_KERNEL("graph_train_begin_step", BeginStepKernel, GT_IS_FLOAT("average"));

}  // namespace

}  // namespace graph_train
