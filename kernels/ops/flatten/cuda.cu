// Copies several tensors into one row: a block for each piece.
#include "native/cuda/device.h"
#include "ops/flatten/flatten.h"

namespace graph_train {

GT_KERNEL(flatten, FlattenArgs, kFlattenThreads) {
  constexpr int kNumbers = 4;  // of one access
  const FlatPiece piece = args.pieces[blockIdx.x];
  for (int64_t first = threadIdx.x * kNumbers; first < piece.count; first += kFlattenThreads * kNumbers) {
    const int number = piece.count - first < kNumbers ? static_cast<int>(piece.count - first) : kNumbers;
    float values[kNumbers];
    load_floats<kNumbers>(piece.from + first, number, values);
    store_floats<kNumbers>(args.out + piece.start + first, number, values);
  }
}

}  // namespace graph_train
