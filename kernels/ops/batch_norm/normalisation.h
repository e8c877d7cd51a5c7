// Batch normalisation in both layouts; with channels last also with a SiLU after it, and for Bfloat16 as well as float
// (T). Arrays per channel are float.
#pragma once

#include <cstdint>

namespace graph_train {

// (batch, channels, area), or (batch, area, channels) with channels_last.
struct NormalisedShape {
  int64_t batch, channels, area;
  bool channels_last;
  int64_t count() const { return batch * area; }
};

// Mean and biased variance per channel; both 0 for an empty batch.
template<typename T>
void batch_moments(const NormalisedShape& shape, const T* x, float* mean, float* variance);

// moving = momentum * moving + (1 - momentum) * value, with the unbiased variance; momentum as defined by OneFlow.
// Channels with a non-finite mean or variance are not updated, nor is any by an empty batch.
void update_moving(const NormalisedShape& shape, const float* mean, const float* variance, float momentum,
                   float* moving_mean, float* moving_variance);

// y = (x - mean) * inv_deviation * gamma + beta, then SiLU when `silu`.
template<typename T>
void normalise(const NormalisedShape& shape, const T* x, const float* mean, const float* inv_deviation,
               const float* gamma, const float* beta, bool silu, T* y);

// Gradients of beta and gamma. With `silu`, dz becomes the gradient before SiLU, unless it is null.
template<typename T>
void normalisation_sums(const NormalisedShape& shape, const T* x, const T* dy, const float* mean,
                        const float* inv_deviation, const float* gamma, const float* beta, bool silu, T* dz,
                        float* beta_diff, float* gamma_diff);

// Gradient of x, from the sums above over the `pixels` of the statistics; dy and dx may be the same memory.
template<typename T>
void normalisation_gradient(const NormalisedShape& shape, const T* x, const T* dy, const float* mean,
                            const float* inv_deviation, const float* gamma, const float* beta, const float* beta_diff,
                            const float* gamma_diff, int64_t pixels, bool silu, T* dx);

// 1 / sqrt(variance + epsilon) per channel.
void inverse_deviation(const float* variance, float epsilon, int64_t channels, float* out);

}  // namespace graph_train
