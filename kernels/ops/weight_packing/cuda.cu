// All weights in one launch: a thread looks its weight up in the table and moves a few of its numbers.
#include "native/cuda/device.h"
#include "ops/weight_packing/weight_packing.h"

namespace graph_train {

// The weight that holds a number of the row of all: the last one that starts at or before it.
GT_DEVICE const PackedWeight& weight_at(const PackArgs& args, int64_t place) {
  int first = 0, last = args.number - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (args.weights[middle].start <= place) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return args.weights[first];
}

// Calls body(weight, index in it) for this thread's numbers; neighbouring threads take neighbouring numbers.
template<typename Body>
GT_DEVICE void for_own_weights(const PackArgs& args, const Body& body) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x * kPackedPerThread + threadIdx.x;
  for (int i = 0; i < kPackedPerThread; ++i) {
    const int64_t place = first + static_cast<int64_t>(i) * blockDim.x;
    if (place >= args.total) return;
    const PackedWeight& weight = weight_at(args, place);
    body(weight, place - weight.start);
  }
}

template<typename T>
GT_DEVICE void pack_weights(const PackArgs& args) {
  for_own_weights(args, [](const PackedWeight& weight, int64_t index) {
    const float* plain = static_cast<const float*>(weight.plain);
    static_cast<T*>(weight.packed)[index] = from_float<T>(plain[plain_index(index, weight.in_channels, weight.taps)]);
  });
}

template<typename T>
GT_DEVICE void unpack_weights(const PackArgs& args) {
  for_own_weights(args, [](const PackedWeight& weight, int64_t index) {
    float* plain = static_cast<float*>(weight.plain);
    plain[plain_index(index, weight.in_channels, weight.taps)] = to_float(static_cast<const T*>(weight.packed)[index]);
  });
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, pack_weights, PackArgs, kPackThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, unpack_weights, PackArgs, kPackThreads)

}  // namespace graph_train
