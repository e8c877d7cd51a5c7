// Moving average of many small tensors: a block for each piece.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/statistics/statistics.h"

namespace graph_train {

GT_KERNEL(average_statistics, AverageArgs, kFlattenThreads) {
  const FlatPiece piece = args.pieces[blockIdx.x];
  const float share = args.share[0];
  for (int64_t i = threadIdx.x; i < piece.count; i += kFlattenThreads) {
    const float current = piece.from[i];
    args.out[piece.start + i] = current;
    args.average[piece.start + i] = moved_average(args.average[piece.start + i], current, share);
  }
}

}  // namespace graph_train
