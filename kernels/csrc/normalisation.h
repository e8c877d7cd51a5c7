// Batch normalisation of float activations in both layouts, with an optional SiLU behind it.
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

// Mean and biased variance per channel.
void batch_moments(const NormalisedShape& shape, const float* x, float* mean, float* variance);

// moving = momentum * moving + (1 - momentum) * value, with the unbiased variance; momentum as OneFlow counts it.
void update_moving(const NormalisedShape& shape, const float* mean, const float* variance, float momentum,
                   float* moving_mean, float* moving_variance);

// y = (x - mean) * inv_deviation * gamma + beta, then SiLU when `silu`.
void normalise(const NormalisedShape& shape, const float* x, const float* mean, const float* inv_deviation,
               const float* gamma, const float* beta, bool silu, float* y);

// Gradients of beta and gamma.
void normalisation_sums(const NormalisedShape& shape, const float* x, const float* dy, const float* mean,
                        const float* inv_deviation, const float* gamma, const float* beta, bool silu, float* beta_diff,
                        float* gamma_diff);

// Gradient of x, from the sums above.
void normalisation_gradient(const NormalisedShape& shape, const float* x, const float* dy, const float* mean,
                            const float* inv_deviation, const float* gamma, const float* beta, const float* beta_diff,
                            const float* gamma_diff, bool silu, float* dx);

// 1 / sqrt(variance + epsilon) per channel.
void inverse_deviation(const float* variance, float epsilon, int64_t channels, float* out);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_NORMALISATION_H_
