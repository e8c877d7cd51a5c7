// Views of test-time augmentation: one thread per element of the result.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/augmented_views/augmented_views.h"

namespace graph_train {

GT_KERNEL(augmented_view, ViewArgs, kViewThreads) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= args.planes * args.out_rows * args.out_columns) return;
  const int64_t line = index / args.out_columns, column = index - line * args.out_columns;
  const int64_t plane = line / args.out_rows, row = line - plane * args.out_rows;
  if (row >= args.scaled_rows || column >= args.scaled_columns) {
    args.out[index] = args.border;
    return;
  }
  const Neighbours rows = neighbours_of(row, args.rows, args.scaled_rows);
  const uint8_t* pixels = args.images + plane * args.rows * args.columns;
  args.out[index] = view_value(pixels + rows.first * args.columns, pixels + rows.second * args.columns, rows.weight,
                               columns_of(args, column));
}

GT_KERNEL(join_views, JoinArgs, kViewThreads) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= args.images * args.joined * args.numbers) return;
  const int64_t line = index / args.numbers, place = index - line * args.numbers;
  const int64_t image = line / args.joined, row = line - image * args.joined;
  int own = 0;
  while (own + 1 < args.view_count && row >= args.views[own + 1].place) ++own;
  const ViewRows& view = args.views[own];
  const float* from = view.rows + (image * view.number + view.first + row - view.place) * args.numbers;
  args.out[index] = value_in_image(view, args.width, place, from[place]);
}

}  // namespace graph_train
