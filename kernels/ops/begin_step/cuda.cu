// Beginning of a step: a block for each piece of the statistics; the first block also hands out the scalars.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/begin_step/begin_step.h"

namespace graph_train {

GT_KERNEL(begin_step, BeginStepArgs, kFlattenThreads) {
  const float* const row = chosen_row(args);
  if (blockIdx.x == 0) {
    for (int64_t index = threadIdx.x; index < args.size; index += kFlattenThreads) hand_out(args, row, index);
  }
  const FlatPiece piece = args.pieces[blockIdx.x];
  const float share = row[args.size - 1];
  for (int64_t i = threadIdx.x; i < piece.count; i += kFlattenThreads) {
    float* const average = args.average + piece.start + i;
    *average = moved_average(*average, piece.from[i], share);
  }
}

}  // namespace graph_train
