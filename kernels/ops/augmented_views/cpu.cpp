// Views of test-time augmentation on the CPU, parallel over rows of pixels and rows of predictions.
#include <vector>

#include "native/exact_rounding.h"
#include "ops/augmented_views/call.h"

namespace graph_train {

namespace {

GT_VECTOR void scale_row(const uint8_t* upper, const uint8_t* lower, float lower_weight, const Neighbours* columns,
                         int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = view_value(upper, lower, lower_weight, columns[i]);
}

class AugmentedViewKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const ViewArgs args = view_args(ctx);
    std::vector<Neighbours> columns(args.scaled_columns);
    for (int64_t i = 0; i < args.scaled_columns; ++i) columns[i] = columns_of(args, i);
    parallel_for(args.planes * args.out_rows, grain_of(args.out_columns), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t row = at % args.out_rows;
        float* out = args.out + at * args.out_columns;
        int64_t filled = 0;
        if (row < args.scaled_rows) {
          const Neighbours rows = neighbours_of(row, args.rows, args.scaled_rows);
          const uint8_t* plane = args.images + at / args.out_rows * args.rows * args.columns;
          scale_row(plane + rows.first * args.columns, plane + rows.second * args.columns, rows.weight, columns.data(),
                    args.scaled_columns, out);
          filled = args.scaled_columns;
        }
        std::fill(out + filled, out + args.out_columns, args.border);
      }
    });
  }
};

class JoinViewsKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const JoinArgs args = join_args(ctx);
    for (int32_t index = 0; index < args.view_count; ++index) {
      const ViewRows& view = args.views[index];
      parallel_for(args.images * view.kept, grain_of(args.numbers), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
          const int64_t image = at / view.kept, row = at % view.kept;
          const float* from = view.rows + (image * view.number + view.first + row) * args.numbers;
          float* to = args.out + (image * args.joined + view.place + row) * args.numbers;
          for (int64_t place = 0; place < 4; ++place) {
            to[place] = value_in_image(view, args.width, place, from[place]);
          }
          std::copy(from + 4, from + args.numbers, to + 4);
        }
      });
    }
  }
};

GT_CPU_KERNEL("graph_train_augmented_view", AugmentedViewKernel, GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_join_views", JoinViewsKernel, GT_IS_FLOAT("out"));

}  // namespace

}  // namespace graph_train
