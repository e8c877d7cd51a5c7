// Batch normalisation of activations in both layouts; with channels last with an optional SiLU behind it, and of Bfloat16
// as well as float (T). All that belongs to channels is float.
#ifndef GRAPH_TRAIN_KERNELS_NORMALISATION_H_
#define GRAPH_TRAIN_KERNELS_NORMALISATION_H_

#include <cstdint>

namespace graph_train {

// (batch, channels, area), or (batch, area, channels) with channels_last.
struct NormalisedShape {
  int64_t batch, channels, area;
  bool channels_last;
  int64_t count() const { return batch * area; }
};

// Mean and biased variance per channel; 0 and 0 of no values.
template<typename T>
void batch_moments(const NormalisedShape& shape, const T* x, float* mean, float* variance);

// moving = momentum * moving + (1 - momentum) * value, with the unbiased variance; momentum as OneFlow counts it. A channel
// whose mean or variance is not finite stays as it is; no values change nothing.
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

// Gradient of x, from the sums above over the `pixels` that the statistics were taken of; dy and dx may be the same.
template<typename T>
void normalisation_gradient(const NormalisedShape& shape, const T* x, const T* dy, const float* mean,
                            const float* inv_deviation, const float* gamma, const float* beta, const float* beta_diff,
                            const float* gamma_diff, int64_t pixels, bool silu, T* dx);

// 1 / sqrt(variance + epsilon) per channel.
void inverse_deviation(const float* variance, float epsilon, int64_t channels, float* out);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_NORMALISATION_H_
