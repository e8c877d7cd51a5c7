#include "ops/batch_norm/normalisation.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "native/common.h"
#include "native/vector_kernels.h"

namespace graph_train {

namespace {

// Bfloat16 and SiLU are only supported for channels-last activations.
template<typename T>
constexpr bool kHasPlanes = std::is_same_v<T, float>;

struct ChannelSums {
  std::vector<double> first, second;
};

// Two sums for each channel. on_plane(channel, offset, &first, &second) adds those of one plane; with channels last
// on_rows(offset, rows, firsts, seconds) those of a stretch of rows, and the stretches of all threads are added in
// order.
template<typename OnPlane, typename OnRows>
ChannelSums channel_sums(const NormalisedShape& s, const OnPlane& on_plane, const OnRows& on_rows) {
  ChannelSums sums{std::vector<double>(s.channels), std::vector<double>(s.channels)};
  if (!s.channels_last) {
    parallel_for(s.channels, grain_of(s.count()), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t b = 0; b < s.batch; ++b) {
          on_plane(c, (b * s.channels + c) * s.area, &sums.first[c], &sums.second[c]);
        }
      }
    });
    return sums;
  }
  const int64_t parts = std::min<int64_t>(num_threads(), std::max<int64_t>(1, s.count() / grain_of(s.channels)));
  std::vector<ChannelSums> partial(parts, sums);
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t from = s.count() * p / parts;
      const int64_t to = s.count() * (p + 1) / parts;
      on_rows(from * s.channels, to - from, partial[p].first.data(), partial[p].second.data());
    }
  });
  for (const ChannelSums& part : partial) {
    for (int64_t c = 0; c < s.channels; ++c) {
      sums.first[c] += part.first[c];
      sums.second[c] += part.second[c];
    }
  }
  return sums;
}

// Calls on_plane(channel, offset) for every plane or on_rows(offset, rows) for stretches of rows, each thread's last
// one first, because the sums computed before left the last rows in the cache.
template<typename OnPlane, typename OnRows>
void for_each_part(const NormalisedShape& s, const OnPlane& on_plane, const OnRows& on_rows) {
  if (s.channels_last) {
    const int64_t stretch = grain_of(s.channels);
    parallel_for(s.count(), stretch, [&](int64_t begin, int64_t end) {
      while (end > begin) {
        const int64_t from = std::max(begin, end - stretch);
        on_rows(from * s.channels, end - from);
        end = from;
      }
    });
    return;
  }
  parallel_for(s.batch * s.channels, grain_of(s.area), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) on_plane(plane % s.channels, plane * s.area);
  });
}

std::vector<float> gains(const NormalisedShape& s, const float* inv_deviation, const float* gamma) {
  std::vector<float> gain(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) gain[c] = inv_deviation[c] * gamma[c];
  return gain;
}

}  // namespace

template<typename T>
void batch_moments(const NormalisedShape& s, const T* x, float* mean, float* variance) {
  if (s.count() == 0) {
    std::fill_n(mean, s.channels, 0.0f);
    std::fill_n(variance, s.channels, 0.0f);
    return;
  }
  // Sums are relative to a value of the data: sums of plain squares would lose the variance if the mean is large.
  std::vector<float> shift(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) shift[c] = to_float(x[s.channels_last ? c : c * s.area]);
  const auto& on = vector_kernels();
  const ChannelSums sums = channel_sums(
      s,
      [&](int64_t c, int64_t offset, double* sum, double* square) {
        if constexpr (kHasPlanes<T>) on.planes.moments(x + offset, s.area, shift[c], sum, square);
      },
      [&](int64_t offset, int64_t rows, double* first, double* second) {
        on.rows<T>().moments(x + offset, rows, s.channels, shift.data(), first, second);
      });
  for (int64_t c = 0; c < s.channels; ++c) {
    const double offset = sums.first[c] / s.count();
    mean[c] = static_cast<float>(shift[c] + offset);
    // This order of operands preserves NaN.
    variance[c] = static_cast<float>(std::max(sums.second[c] / s.count() - offset * offset, 0.0));
  }
}

void update_moving(const NormalisedShape& s, const float* mean, const float* variance, float momentum,
                   float* moving_mean, float* moving_variance) {
  if (s.count() == 0) return;
  const double unbiased = static_cast<double>(s.count()) / static_cast<double>(std::max<int64_t>(1, s.count() - 1));
  const float rate = 1.0f - momentum;
  for (int64_t c = 0; c < s.channels; ++c) {
    if (!std::isfinite(mean[c]) || !std::isfinite(variance[c])) continue;
    moving_mean[c] = moving_mean[c] * momentum + mean[c] * rate;
    moving_variance[c] = moving_variance[c] * momentum + static_cast<float>(variance[c] * unbiased) * rate;
  }
}

void inverse_deviation(const float* variance, float epsilon, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = 1.0f / std::sqrt(variance[c] + epsilon);
}

template<typename T>
void normalise(const NormalisedShape& s, const T* x, const float* mean, const float* inv_deviation, const float* gamma,
               const float* beta, bool silu, T* y) {
  CHECK(s.channels_last || !silu);
  const std::vector<float> gain = gains(s, inv_deviation, gamma);
  const auto& on = vector_kernels();
  const ChannelAffine affine{mean, gain.data(), beta};
  for_each_part(
      s,
      [&](int64_t c, int64_t offset) {
        if constexpr (kHasPlanes<T>) {
          on.planes.normalise(x + offset, y + offset, s.area, mean[c], gain[c], beta[c]);
        }
      },
      [&](int64_t offset, int64_t rows) {
        on.rows<T>().normalise(x + offset, y + offset, rows, s.channels, affine, silu);
      });
}

template<typename T>
void normalisation_sums(const NormalisedShape& s, const T* x, const T* dy, const float* mean,
                        const float* inv_deviation, const float* gamma, const float* beta, bool silu, T* dz,
                        float* beta_diff, float* gamma_diff) {
  CHECK(s.channels_last || !silu);
  const std::vector<float> gain = gains(s, inv_deviation, gamma);
  const auto& on = vector_kernels();
  const ChannelAffine affine{mean, gain.data(), beta};
  const ChannelSums sums = channel_sums(
      s,
      [&](int64_t c, int64_t offset, double* sum, double* product) {
        if constexpr (kHasPlanes<T>) {
          on.planes.gradient_sums(x + offset, dy + offset, s.area, mean[c], sum, product);
        }
      },
      [&](int64_t offset, int64_t rows, double* first, double* second) {
        T* const kept = dz == nullptr ? nullptr : dz + offset;
        on.rows<T>().gradient_sums(x + offset, dy + offset, rows, s.channels, affine, silu, kept, first, second);
      });
  for (int64_t c = 0; c < s.channels; ++c) {
    beta_diff[c] = static_cast<float>(sums.first[c]);
    gamma_diff[c] = static_cast<float>(sums.second[c] * inv_deviation[c]);
  }
}

template<typename T>
void normalisation_gradient(const NormalisedShape& s, const T* x, const T* dy, const float* mean,
                            const float* inv_deviation, const float* gamma, const float* beta, const float* beta_diff,
                            const float* gamma_diff, int64_t pixels, bool silu, T* dx) {
  CHECK(s.channels_last || !silu);
  if (s.count() == 0) return;
  const std::vector<float> gain = gains(s, inv_deviation, gamma);
  std::vector<float> offset(s.channels), slope(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) {
    offset[c] = beta_diff[c] / pixels;
    slope[c] = gamma_diff[c] * inv_deviation[c] / pixels;
  }
  const auto& on = vector_kernels();
  const ChannelAffine affine{mean, gain.data(), beta};
  for_each_part(
      s,
      [&](int64_t c, int64_t at) {
        if constexpr (kHasPlanes<T>) {
          on.planes.gradient(x + at, dy + at, dx + at, s.area, mean[c], gain[c], offset[c], slope[c]);
        }
      },
      [&](int64_t at, int64_t rows) {
        on.rows<T>().gradient(x + at, dy + at, dx + at, rows, s.channels, affine, offset.data(), slope.data(), silu);
      });
}

#define GT_INSTANTIATE(T)                                                                                           \
  template void batch_moments(const NormalisedShape&, const T*, float*, float*);                                    \
  template void normalise(const NormalisedShape&, const T*, const float*, const float*, const float*, const float*, \
                          bool, T*);                                                                                \
  template void normalisation_sums(const NormalisedShape&, const T*, const T*, const float*, const float*,          \
                                   const float*, const float*, bool, T*, float*, float*);                           \
  template void normalisation_gradient(const NormalisedShape&, const T*, const T*, const float*, const float*,      \
                                       const float*, const float*, const float*, const float*, int64_t, bool, T*);

GT_INSTANTIATE(float)
GT_INSTANTIATE(Bfloat16)

}  // namespace graph_train
