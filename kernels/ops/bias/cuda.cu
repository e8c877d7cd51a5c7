// Bias and SiLU element by element; the gradient of the bias in two launches: sums of blocks of rows, then their sum.
#include "native/cuda/device.h"
#include "ops/bias/bias.h"

namespace graph_train {

template<typename In, typename Out>
GT_DEVICE void add_bias(const BiasArgs& args) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= args.rows * args.channels) return;
  const float sum = to_float(static_cast<const In*>(args.x)[at]) + args.bias[at % args.channels];
  const float value = args.silu != 0 ? sum / (1.0f + expf(-sum)) : sum;
  static_cast<Out*>(args.out)[at] = from_float<Out>(value);
}

// Block (x: channels, y: rows): a thread sums one channel over kBiasRows rows; its neighbours read the next channels.
template<typename Out>
GT_DEVICE void bias_sums(const BiasGradArgs& args) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= args.channels) return;
  for (int64_t block = blockIdx.y; block < args.blocks; block += gridDim.y) {
    const int64_t first = block * kBiasRows;
    const int64_t last = first + kBiasRows < args.rows ? first + kBiasRows : args.rows;
    float sum = 0;
    for (int64_t row = first; row < last; ++row) {
      const float value = args.dy[row * args.channels + channel];
      sum += value;
      static_cast<Out*>(args.dx)[row * args.channels + channel] = from_float<Out>(value);
    }
    args.partial[block * args.channels + channel] = sum;
  }
}

GT_KERNEL(add_bias_f32, BiasArgs, kBiasThreads) { add_bias<float, float>(args); }
GT_KERNEL(add_bias_bf16, BiasArgs, kBiasThreads) { add_bias<Bfloat16, Bfloat16>(args); }
GT_KERNEL(add_bias_f16, BiasArgs, kBiasThreads) { add_bias<Half, Half>(args); }
GT_KERNEL(add_bias_to_f32_bf16, BiasArgs, kBiasThreads) { add_bias<Bfloat16, float>(args); }
GT_KERNEL(add_bias_to_f32_f16, BiasArgs, kBiasThreads) { add_bias<Half, float>(args); }

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, bias_sums, BiasGradArgs, kBiasThreads)

GT_KERNEL(bias_total, BiasGradArgs, kBiasThreads) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= args.channels) return;
  double sum = 0;
  for (int64_t block = 0; block < args.blocks; ++block) sum += args.partial[block * args.channels + channel];
  args.d_bias[channel] = static_cast<float>(sum);
}

}  // namespace graph_train
