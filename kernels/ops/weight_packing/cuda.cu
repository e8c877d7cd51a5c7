// Packing and unpacking convolution weights, all of a network in one launch; writes are coalesced.
#include "native/cuda/device.h"
#include "ops/weight_packing/weight_packing.h"

namespace graph_train {

// The weight that this block processes.
GT_DEVICE const PackedWeight& weight_of_block(const PackArgs& args) {
  int low = 0, high = args.number - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (args.weights[middle].first_block <= static_cast<int64_t>(blockIdx.x)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return args.weights[low];
}

template<typename From, typename To, bool kPack>
GT_DEVICE void rearrange(const PackArgs& args) {
  const PackedWeight weight = weight_of_block(args);
  const int64_t block = static_cast<int64_t>(blockIdx.x) - weight.first_block;
  for (int i = 0; i < kPackPerThread; ++i) {
    const int64_t index = (block * kPackPerThread + i) * kPackThreads + threadIdx.x;
    if (index >= weight.count) return;
    const int64_t place =
        kPack ? unpacked_place(index, weight.inputs, weight.taps) : packed_place(index, weight.inputs, weight.taps);
    static_cast<To*>(weight.out)[index] = from_float<To>(to_float(static_cast<const From*>(weight.in)[place]));
  }
}

template<typename T>
GT_DEVICE void pack_weights(const PackArgs& args) {
  rearrange<float, T, true>(args);
}

template<typename T>
GT_DEVICE void unpack_weights(const PackArgs& args) {
  rearrange<T, float, false>(args);
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, pack_weights, PackArgs, kPackThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, unpack_weights, PackArgs, kPackThreads)

}  // namespace graph_train
