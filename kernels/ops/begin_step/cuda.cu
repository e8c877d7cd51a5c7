// Beginning of a step: one block per piece of the statistics; the first block also copies the scalars.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/begin_step/begin_step.h"

namespace graph_train {

GT_KERNEL(begin_step, BeginStepArgs, kFlattenThreads) {
  const float* const row = selected_row(args);
  if (blockIdx.x == 0) {
    for (int64_t index = threadIdx.x; index < args.size; index += kFlattenThreads) copy_scalar(args, row, index);
  }
  const FlatPiece piece = args.pieces[blockIdx.x];
  const float weight = row[args.size - 1];
  for (int64_t i = threadIdx.x; i < piece.count; i += kFlattenThreads) {
    float* const average = args.average + piece.start + i;
    *average = updated_average(*average, piece.from[i], weight);
  }
}

}  // namespace graph_train
