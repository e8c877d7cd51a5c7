// Addition of a bias to an array (rows, channels), and its gradient.
#include "native/cuda/device.h"
#include "ops/bias/bias.h"

namespace graph_train {

// Elements are processed in memory order, so that accesses are aligned for any number of channels.
template<typename From, typename To>
GT_DEVICE void add_bias(const AddBiasArgs& args) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kBiasPerThread;
  if (first >= args.count) return;
  const int64_t left = args.count - first;
  const int number = left < kBiasPerThread ? static_cast<int>(left) : kBiasPerThread;
  float values[kBiasPerThread] = {};
  load_floats<kBiasPerThread>(static_cast<const From*>(args.x) + first, number, values);
  int64_t channel = first % args.channels;
  for (int i = 0; i < kBiasPerThread; ++i) {
    const float z = values[i] + args.bias[channel];
    values[i] = args.silu ? z / (1.0f + expf(-z)) : z;
    if (++channel == args.channels) channel = 0;
  }
  store_floats<kBiasPerThread>(static_cast<To*>(args.out) + first, number, values);
}

// Writes dx and the sums of this block's rows: each thread adds its rows in float, then pairs of threads are added.
template<typename From, typename To>
GT_DEVICE void add_bias_grad(const AddBiasGradArgs& args) {
  GT_SHARED(float, sums, kBiasThreads);
  const int column = static_cast<int>(threadIdx.x) % kBiasColumns, lane = static_cast<int>(threadIdx.x) / kBiasColumns;
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kBiasColumns + column;
  const int64_t part = blockIdx.x;
  float sum = 0.0f;
  if (channel < args.channels) {
    const int64_t last = args.rows * (part + 1) / args.parts;
    for (int64_t row = args.rows * part / args.parts + lane; row < last; row += kBiasLanes) {
      const float value = to_float(static_cast<const From*>(args.dy)[row * args.channels + channel]);
      static_cast<To*>(args.dx)[row * args.channels + channel] = from_float<To>(value);
      sum += value;
    }
  }
  sums[threadIdx.x] = sum;
  for (int half = kBiasLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) sums[threadIdx.x] += sums[threadIdx.x + half * kBiasColumns];
  }
  if (lane == 0 && channel < args.channels) args.partial_sums[part * args.channels + channel] = sums[threadIdx.x];
}

GT_KERNEL(add_bias_f32_f32, AddBiasArgs, kBiasThreads) { add_bias<float, float>(args); }
GT_KERNEL(add_bias_bf16_bf16, AddBiasArgs, kBiasThreads) { add_bias<Bfloat16, Bfloat16>(args); }
GT_KERNEL(add_bias_f16_f16, AddBiasArgs, kBiasThreads) { add_bias<Half, Half>(args); }
GT_KERNEL(add_bias_bf16_f32, AddBiasArgs, kBiasThreads) { add_bias<Bfloat16, float>(args); }
GT_KERNEL(add_bias_f16_f32, AddBiasArgs, kBiasThreads) { add_bias<Half, float>(args); }

GT_BLOCK_KERNEL(add_bias_grad_f32_f32, AddBiasGradArgs, kBiasThreads) { add_bias_grad<float, float>(args); }
GT_BLOCK_KERNEL(add_bias_grad_bf16_bf16, AddBiasGradArgs, kBiasThreads) { add_bias_grad<Bfloat16, Bfloat16>(args); }
GT_BLOCK_KERNEL(add_bias_grad_f16_f16, AddBiasGradArgs, kBiasThreads) { add_bias_grad<Half, Half>(args); }
GT_BLOCK_KERNEL(add_bias_grad_f32_bf16, AddBiasGradArgs, kBiasThreads) { add_bias_grad<float, Bfloat16>(args); }
GT_BLOCK_KERNEL(add_bias_grad_f32_f16, AddBiasGradArgs, kBiasThreads) { add_bias_grad<float, Half>(args); }

// Adds the parts; one block per channel.
GT_BLOCK_KERNEL(add_bias_sums, AddBiasGradArgs, kBiasThreads) {
  double sum = 0.0;
  for (int64_t part = threadIdx.x; part < args.parts; part += kBiasThreads) {
    sum += args.partial_sums[part * args.channels + blockIdx.x];
  }
  sum = block_sum<kBiasThreads>(sum);
  if (threadIdx.x == 0) args.d_bias[blockIdx.x] = static_cast<float>(sum);
}

}  // namespace graph_train
