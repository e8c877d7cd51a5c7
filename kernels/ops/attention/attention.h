// Arguments of the CUDA kernels of self-attention, and the layout of the heads.
#pragma once

#include "native/exponential.h"

namespace graph_train {

constexpr int kAttentionThreads = 128;

// A token is a pixel; its channels are query, key and value, each of them divided into heads.
struct AttentionShape {
  int64_t images, tokens, channels, heads;

  GT_HOST_DEVICE int64_t head_channels() const { return channels / heads; }
  // Number of rows of the attention weights.
  GT_HOST_DEVICE int64_t rows() const { return images * heads * tokens; }
  // The factor of the scores: 1 / sqrt(channels of a head).
  GT_HOST_DEVICE float scale() const { return 1.0f / sqrtf(static_cast<float>(head_channels())); }
};

struct AttentionArgs {
  AttentionShape shape;
  const void* x;    // (images, tokens, 3 * channels)
  const void* dy;   // (images, tokens, channels)
  void* out;        // like dy, or dx like x
  float* weights;   // (images, heads, tokens, tokens): of each query, for each key; they add up to 1
  float* d_scores;  // the same shape
};

}  // namespace graph_train
