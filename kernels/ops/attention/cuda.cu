// Self-attention: a block processes one query of one head, or one key. Sums over channels and tokens are float, in a
// fixed order.
#include "native/cuda/device.h"
#include "ops/attention/attention.h"

namespace graph_train {

// The token whose query, or key, a block processes.
struct AttentionRow {
  int64_t image, head, token;
  int64_t first;  // of this head's channels in an image of three times the channels
};

GT_DEVICE AttentionRow row_of_block(const AttentionShape& s) {
  const int64_t line = blockIdx.x / s.tokens, image = line / s.heads, head = line - image * s.heads;
  return {image, head, blockIdx.x - line * s.tokens, image * s.tokens * 3 * s.channels + head * s.head_channels()};
}

// Rows of neighbouring threads are far apart in memory, so each thread reads several channels at once.
template<typename T>
GT_DEVICE float dot(const T* a, const T* b, int64_t count) {
  constexpr int kAtOnce = 8;
  float sum = 0.0f, of_a[kAtOnce], of_b[kAtOnce];
  for (int64_t first = 0; first < count; first += kAtOnce) {
    const int number = count - first < kAtOnce ? static_cast<int>(count - first) : kAtOnce;
    load_floats<kAtOnce>(a + first, number, of_a);
    load_floats<kAtOnce>(b + first, number, of_b);
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < number) sum += of_a[i] * of_b[i];
    }
  }
  return sum;
}

// Maximum over a block; every thread gets it. All threads of the block must call it.
GT_DEVICE float block_max(float value) {
  GT_SHARED(float, of_warps, kAttentionThreads / kWarp);
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  float largest = of_warps[0];
  for (int warp = 1; warp < kAttentionThreads / kWarp; ++warp) {
    if (of_warps[warp] > largest) largest = of_warps[warp];
  }
  return largest;
}

template<typename T>
GT_DEVICE void attention(const AttentionArgs& args) {
  const AttentionShape s = args.shape;
  const AttentionRow row = row_of_block(s);
  const int64_t size = s.head_channels(), width = 3 * s.channels;
  const T* query = static_cast<const T*>(args.x) + row.first + row.token * width;
  const T* keys = static_cast<const T*>(args.x) + row.first + s.channels;
  const T* values = keys + s.channels;
  float* weights = args.weights + blockIdx.x * s.tokens;
  float largest = float_of(0xff800000u);  // -infinity
  for (int64_t key = threadIdx.x; key < s.tokens; key += kAttentionThreads) {
    const float score = dot(query, keys + key * width, size) * s.scale();
    weights[key] = score;
    if (score > largest) largest = score;
  }
  largest = block_max(largest);
  double sum = 0.0;
  for (int64_t key = threadIdx.x; key < s.tokens; key += kAttentionThreads) {
    weights[key] = exp_of_negative(weights[key] - largest);
    sum += weights[key];
  }
  const auto scale = static_cast<float>(1.0 / block_sum<kAttentionThreads>(sum));
  for (int64_t key = threadIdx.x; key < s.tokens; key += kAttentionThreads) weights[key] *= scale;
  __syncthreads();
  T* out = static_cast<T*>(args.out) + (row.image * s.tokens + row.token) * s.channels + row.head * size;
  for (int64_t channel = threadIdx.x; channel < size; channel += kAttentionThreads) {
    float mixed = 0.0f;
    for (int64_t key = 0; key < s.tokens; ++key) mixed += weights[key] * to_float(values[key * width + channel]);
    out[channel] = from_float<T>(mixed);
  }
}

// Gradients of the query and of its scores, which are stored for the other kernel.
template<typename T>
GT_DEVICE void attention_query_grad(const AttentionArgs& args) {
  const AttentionShape s = args.shape;
  const AttentionRow row = row_of_block(s);
  const int64_t size = s.head_channels(), width = 3 * s.channels;
  const T* keys = static_cast<const T*>(args.x) + row.first + s.channels;
  const T* values = keys + s.channels;
  const T* dy = static_cast<const T*>(args.dy) + (row.image * s.tokens + row.token) * s.channels + row.head * size;
  const float* weights = args.weights + blockIdx.x * s.tokens;
  float* d_scores = args.d_scores + blockIdx.x * s.tokens;
  double mean = 0.0;
  for (int64_t key = threadIdx.x; key < s.tokens; key += kAttentionThreads) {
    d_scores[key] = dot(dy, values + key * width, size);
    mean += static_cast<double>(weights[key]) * d_scores[key];
  }
  const auto offset = static_cast<float>(block_sum<kAttentionThreads>(mean));
  for (int64_t key = threadIdx.x; key < s.tokens; key += kAttentionThreads) {
    d_scores[key] = weights[key] * (d_scores[key] - offset);
  }
  __syncthreads();
  T* d_query = static_cast<T*>(args.out) + row.first + row.token * width;
  for (int64_t channel = threadIdx.x; channel < size; channel += kAttentionThreads) {
    float sum = 0.0f;
    for (int64_t key = 0; key < s.tokens; ++key) sum += d_scores[key] * to_float(keys[key * width + channel]);
    d_query[channel] = from_float<T>(sum * s.scale());
  }
}

// Gradients of one key and of its value.
template<typename T>
GT_DEVICE void attention_key_grad(const AttentionArgs& args) {
  const AttentionShape s = args.shape;
  const AttentionRow row = row_of_block(s);
  const int64_t size = s.head_channels(), width = 3 * s.channels;
  const T* queries = static_cast<const T*>(args.x) + row.first;
  const T* dy = static_cast<const T*>(args.dy) + row.image * s.tokens * s.channels + row.head * size;
  const int64_t column = (blockIdx.x - row.token) * s.tokens + row.token;
  T* d_key = static_cast<T*>(args.out) + row.first + row.token * width + s.channels;
  for (int64_t index = threadIdx.x; index < 2 * size; index += kAttentionThreads) {
    const bool of_value = index >= size;
    const int64_t channel = of_value ? index - size : index, step = of_value ? s.channels : width;
    const float* factors = (of_value ? args.weights : args.d_scores) + column;
    const T* from = (of_value ? dy : queries) + channel;
    float sum = 0.0f;
    for (int64_t query = 0; query < s.tokens; ++query) sum += factors[query * s.tokens] * to_float(from[query * step]);
    d_key[of_value ? s.channels + channel : channel] = from_float<T>(of_value ? sum : sum * s.scale());
  }
}

GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, attention, AttentionArgs, kAttentionThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, attention_query_grad, AttentionArgs, kAttentionThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, attention_key_grad, AttentionArgs, kAttentionThreads)

}  // namespace graph_train
