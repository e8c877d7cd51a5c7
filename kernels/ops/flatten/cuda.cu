// Concatenates flattened tensors; one block per piece.
#include "native/cuda/device.h"
#include "ops/flatten/flatten.h"

namespace graph_train {

GT_KERNEL(flatten, FlattenArgs, kFlattenThreads) {
  constexpr int kValues = 4;  // per access
  const FlatPiece piece = args.pieces[blockIdx.x];
  for (int64_t first = threadIdx.x * kValues; first < piece.count; first += kFlattenThreads * kValues) {
    const int number = piece.count - first < kValues ? static_cast<int>(piece.count - first) : kValues;
    float values[kValues];
    load_floats<kValues>(piece.from + first, number, values);
    store_floats<kValues>(args.out + piece.start + first, number, values);
  }
}

}  // namespace graph_train
