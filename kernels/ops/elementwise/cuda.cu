// Sums, casts and fills of whole tensors.
#include "native/cuda/device.h"
#include "ops/elementwise/elementwise.h"

namespace graph_train {

// Calls body(first, number) for this thread's elements: kPerThread, fewer at the end.
template<typename Body>
GT_DEVICE void for_thread_elements(int64_t count, const Body& body) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPerThread;
  if (first >= count) return;
  body(first, count - first < kPerThread ? static_cast<int>(count - first) : kPerThread);
}

// Adds the summands from the first to the last, and rounds once.
template<typename T>
GT_DEVICE void add_n(const AddArgs& args) {
  for_thread_elements(args.count, [&](int64_t first, int number) {
    float sum[kPerThread] = {}, next[kPerThread] = {};
    load_floats<kPerThread>(static_cast<const T*>(args.inputs[0]) + first, number, sum);
    for (int input = 1; input < args.summands; ++input) {
      load_floats<kPerThread>(static_cast<const T*>(args.inputs[input]) + first, number, next);
      for (int i = 0; i < kPerThread; ++i) sum[i] += next[i];
    }
    store_floats<kPerThread>(static_cast<T*>(args.out) + first, number, sum);
  });
}

template<typename From, typename To>
GT_DEVICE void cast(const CastArgs& args) {
  for_thread_elements(args.count, [&](int64_t first, int number) {
    float values[kPerThread] = {};
    load_floats<kPerThread>(static_cast<const From*>(args.in) + first, number, values);
    store_floats<kPerThread>(static_cast<To*>(args.out) + first, number, values);
  });
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, add_n, AddArgs, kElementwiseThreads)

GT_KERNEL(cast_f32_bf16, CastArgs, kElementwiseThreads) { cast<float, Bfloat16>(args); }
GT_KERNEL(cast_bf16_f32, CastArgs, kElementwiseThreads) { cast<Bfloat16, float>(args); }
GT_KERNEL(cast_f32_f16, CastArgs, kElementwiseThreads) { cast<float, Half>(args); }
GT_KERNEL(cast_f16_f32, CastArgs, kElementwiseThreads) { cast<Half, float>(args); }

GT_KERNEL(fill_f32, FillArgs, kElementwiseThreads) {
  for_thread_elements(args.count, [&](int64_t first, int number) {
    float values[kPerThread];
    for (int i = 0; i < kPerThread; ++i) values[i] = args.value;
    store_floats<kPerThread>(static_cast<float*>(args.out) + first, number, values);
  });
}

}  // namespace graph_train
