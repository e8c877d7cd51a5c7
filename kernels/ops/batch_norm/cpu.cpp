// Our BatchNorm ops on the CPU; the arithmetic is in normalisation.cpp.
#include <type_traits>

#include "native/attributes.h"
#include "native/number_types.h"
#include "ops/batch_norm/normalisation.h"

namespace graph_train {

namespace {

NormalisedShape rows_of(const oneflow::ShapeView& x) { return {x.Count(0, 3), x.At(3), 1, true}; }

// Writes mean and 1 / deviation to `statistics`: those of the batch in training, which also updates the running
// statistics, otherwise the running statistics.
template<typename T>
void find_statistics(const NormalisedShape& shape, const T* x, bool training, const std::vector<float>& floats,
                     float* moving_mean, float* moving_variance, float* statistics) {
  std::vector<float> variance(shape.channels);
  if (training) {
    batch_moments(shape, x, statistics, variance.data());
    update_moving(shape, statistics, variance.data(), 1.0f - floats.at(1), moving_mean, moving_variance);
  } else {
    std::copy(moving_mean, moving_mean + shape.channels, statistics);
    std::copy(moving_variance, moving_variance + shape.channels, variance.begin());
  }
  inverse_deviation(variance.data(), floats.at(0), shape.channels, statistics + shape.channels);
}

template<typename T>
class BatchNormKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const T* x = data_of<T>(ctx, "x");
    float* statistics = result_of(ctx, "out", 1);
    find_statistics(shape, x, integers_of(ctx).at(0) != 0, floats_of(ctx), result_of(ctx, "moving_mean"),
                    result_of(ctx, "moving_variance"), statistics);
    normalise(shape, x, statistics, statistics + shape.channels, data_of(ctx, "gamma"), data_of(ctx, "beta"),
              integers_of(ctx).at(1) != 0, result_of<T>(ctx));
  }
};

template<typename T>
class BatchNormGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const T* x = data_of<T>(ctx, "x");
    const T* dy = data_of<T>(ctx, "dy");
    const float* mean = data_of(ctx, "statistics");
    const float* inverse = mean + shape.channels;
    const float* gamma = data_of(ctx, "gamma");
    const float* beta = data_of(ctx, "beta");
    float* gamma_diff = result_of(ctx, "out", 1);
    float* beta_diff = result_of(ctx, "out", 2);
    const bool silu = integers_of(ctx).at(1) != 0;
    T* dx = result_of<T>(ctx);
    // In float32, the gradient before SiLU is stored in dx, because reading it is faster than computing it again.
    const bool stores_dz = silu && std::is_same_v<T, float>;
    normalisation_sums(shape, x, dy, mean, inverse, gamma, beta, silu, stores_dz ? dx : nullptr, beta_diff, gamma_diff);
    // The running statistics do not depend on x.
    const std::vector<float> zeros(integers_of(ctx).at(0) != 0 ? 0 : shape.channels);
    const float* of_mean = zeros.empty() ? beta_diff : zeros.data();
    const float* of_deviation = zeros.empty() ? gamma_diff : zeros.data();
    normalisation_gradient(shape, x, stores_dz ? dx : dy, mean, inverse, gamma, beta, of_mean, of_deviation,
                           shape.count(), silu && !stores_dz, dx);
  }
};

// Fraction of all ranks' pixels that this rank has; 0 if there are none.
double pixel_fraction(const NormalisedShape& shape, int64_t pixels) {
  return static_cast<double>(shape.count()) / static_cast<double>(std::max<int64_t>(1, pixels));
}

// This rank's part of the mean over all ranks' pixels.
template<typename T>
class ChannelMeanKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const double fraction = pixel_fraction(shape, integers_of(ctx).at(0));
    float* mean = result_of(ctx);
    std::vector<float> variance(shape.channels);
    batch_moments(shape, data_of<T>(ctx, "x"), mean, variance.data());
    for (int64_t c = 0; c < shape.channels; ++c) mean[c] = static_cast<float>(mean[c] * fraction);
  }
};

template<typename T>
class ChannelVarianceKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const double fraction = pixel_fraction(shape, integers_of(ctx).at(0));
    const float* mean = data_of(ctx, "mean");
    float* variance = result_of(ctx);
    std::vector<float> own_mean(shape.channels);
    batch_moments(shape, data_of<T>(ctx, "x"), own_mean.data(), variance);
    for (int64_t c = 0; c < shape.channels; ++c) {
      const double difference = static_cast<double>(own_mean[c]) - mean[c];
      variance[c] = static_cast<float>((variance[c] + difference * difference) * fraction);
    }
  }
};

template<typename T>
class NormaliseKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const NormalisedShape all_ranks{integers_of(ctx).at(0), shape.channels, 1, true};
    const float* mean = data_of(ctx, "mean");
    const float* variance = data_of(ctx, "variance");
    float* statistics = result_of(ctx, "out", 1);
    std::copy(mean, mean + shape.channels, statistics);
    inverse_deviation(variance, floats_of(ctx).at(0), shape.channels, statistics + shape.channels);
    update_moving(all_ranks, mean, variance, 1.0f - floats_of(ctx).at(1), result_of(ctx, "moving_mean"),
                  result_of(ctx, "moving_variance"));
    normalise(shape, data_of<T>(ctx, "x"), statistics, statistics + shape.channels, data_of(ctx, "gamma"),
              data_of(ctx, "beta"), integers_of(ctx).at(1) != 0, result_of<T>(ctx));
  }
};

template<typename T>
class NormaliseSumsKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const float* mean = data_of(ctx, "statistics");
    float* both = result_of(ctx, "out", 0);
    normalisation_sums(shape, data_of<T>(ctx, "x"), data_of<T>(ctx, "dy"), mean, mean + shape.channels,
                       data_of(ctx, "gamma"), data_of(ctx, "beta"), integers_of(ctx).at(0) != 0,
                       static_cast<T*>(nullptr), both, both + shape.channels);
    std::copy(both + shape.channels, both + 2 * shape.channels, result_of(ctx, "out", 1));
    std::copy(both, both + shape.channels, result_of(ctx, "out", 2));
  }
};

template<typename T>
class NormaliseGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const float* mean = data_of(ctx, "statistics");
    const float* total_sums = data_of(ctx, "total_sums");
    normalisation_gradient(shape, data_of<T>(ctx, "x"), data_of<T>(ctx, "dy"), mean, mean + shape.channels,
                           data_of(ctx, "gamma"), data_of(ctx, "beta"), total_sums, total_sums + shape.channels,
                           integers_of(ctx).at(0), integers_of(ctx).at(1) != 0, result_of<T>(ctx));
  }
};

GT_CPU_ACTIVATION_KERNEL("graph_train_batch_norm", BatchNormKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_batch_norm_grad", BatchNormGradKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_channel_mean", ChannelMeanKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_channel_variance", ChannelVarianceKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_normalise", NormaliseKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_normalise_sums", NormaliseSumsKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_normalise_grad", NormaliseGradKernel, GT_ALWAYS);

}  // namespace

}  // namespace graph_train
