// Views of test-time augmentation on the CPU: rows of pixels, and rows of predictions, are the units of parallel work.
#include <vector>

#include "native/exact_rounding.h"
#include "ops/augmented_views/call.h"

namespace graph_train {

namespace {

constexpr int64_t kNumbersPerThread = 1 << 13;

int64_t rows_per_thread(int64_t numbers) {
  return std::max<int64_t>(1, kNumbersPerThread / std::max<int64_t>(1, numbers));
}

GT_VECTOR void scale_row(const uint8_t* upper, const uint8_t* lower, float lower_share, const Neighbours* columns,
                         int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = view_value(upper, lower, lower_share, columns[i]);
}

class AugmentedViewKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const ViewArgs args = view_args(ctx);
    std::vector<Neighbours> columns(args.scaled_columns);
    for (int64_t i = 0; i < args.scaled_columns; ++i) columns[i] = columns_of(args, i);
    parallel_for(args.planes * args.out_rows, rows_per_thread(args.out_columns), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t row = at % args.out_rows;
        float* out = args.out + at * args.out_columns;
        int64_t filled = 0;
        if (row < args.scaled_rows) {
          const Neighbours rows = neighbours_of(row, args.rows, args.scaled_rows);
          const uint8_t* plane = args.images + at / args.out_rows * args.rows * args.columns;
          scale_row(plane + rows.first * args.columns, plane + rows.second * args.columns, rows.share, columns.data(),
                    args.scaled_columns, out);
          filled = args.scaled_columns;
        }
        std::fill(out + filled, out + args.out_columns, args.border);
      }
    });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

class JoinViewsKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const JoinArgs args = join_args(ctx);
    for (int32_t index = 0; index < args.view_count; ++index) {
      const ViewRows& view = args.views[index];
      parallel_for(args.images * view.kept, rows_per_thread(args.numbers), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
          const int64_t image = at / view.kept, row = at % view.kept;
          const float* from = view.rows + (image * view.number + view.first + row) * args.numbers;
          float* to = args.out + (image * args.joined + view.place + row) * args.numbers;
          for (int64_t place = 0; place < 4; ++place) {
            to[place] = number_in_image(view, args.width, place, from[place]);
          }
          std::copy(from + 4, from + args.numbers, to + 4);
        }
      });
    }
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CPU_KERNEL("graph_train_augmented_view", AugmentedViewKernel, GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_join_views", JoinViewsKernel, GT_IS_FLOAT("out"));

}  // namespace

}  // namespace graph_train
