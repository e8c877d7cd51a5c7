// BatchNorm of an array (rows, channels), followed by an optional SiLU.
//
// Sums over rows: each thread adds its own rows in float, each block adds its threads pairwise, and the blocks' sums
// are added in double, all in a fixed order. Kernels that need total sums wait for all blocks, so that each direction
// is one launch. After the wait, rows are processed from the last to the first, because the last ones are still in the
// cache.
#include "native/cuda/device.h"
#include "ops/batch_norm/batch_norm.h"
#include "ops/batch_norm/rows.h"

namespace graph_train {

GT_DEVICE void load_channels(const float* from, const NormThread& thread, float* to) {
  for (int i = 0; i < kNormPerThread; ++i) to[i] = 0.0f;
  load_floats<kNormPerThread>(from + thread.channel, thread.channels, to);
}

// z = (x - mean) * gain + bias.
struct NormColumns {
  float mean[kNormPerThread], gain[kNormPerThread], bias[kNormPerThread];
};

GT_DEVICE NormColumns norm_columns(const NormArgs& args, const NormThread& thread, const float* mean,
                                   const float* inverse) {
  NormColumns columns;
  float inverses[kNormPerThread];
  load_channels(mean, thread, columns.mean);
  load_channels(inverse, thread, inverses);
  load_channels(args.gamma, thread, columns.gain);
  load_channels(args.beta, thread, columns.bias);
  for (int i = 0; i < kNormPerThread; ++i) columns.gain[i] *= inverses[i];
  return columns;
}

GT_DEVICE float norm_sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

GT_DEVICE float norm_silu_slope(float z) {
  const float s = norm_sigmoid(z);
  return s * (1.0f + z * (1.0f - s));
}

GT_DEVICE float norm_inverse(float variance, float epsilon) { return 1.0f / sqrtf(variance + epsilon); }

// A typical value of a channel, subtracted before squaring: otherwise the variance is lost if the mean is large.
template<typename T>
GT_DEVICE float norm_shift(const NormArgs& args, int64_t channel) {
  const T* x = static_cast<const T*>(args.x) + channel;
  float shift = 0.0f;
  for (int64_t i = 0; i < 4; ++i) shift += 0.25f * to_float(x[(2 * i + 1) * args.rows / 8 * args.channels]);
  return shift;
}

// Sums over the rows of each thread, then of the lanes of the block pairwise, go to partial_sums. A thread's sums wait
// in shared memory, which leaves more registers for loads in progress.
template<typename Body>
GT_DEVICE void sum_rows(const NormArgs& args, const NormPieces& p, const NormThread& thread, bool whole,
                        const Body& body) {
  GT_SHARED(float, of_threads, 2 * kNormPerThread * kNormThreads);
  float* own = of_threads + threadIdx.x;
  __syncthreads();  // those of an earlier piece may still be read
  for (int i = 0; i < 2 * kNormPerThread; ++i) own[i * kNormThreads] = 0.0f;
  if (whole) {
    sum_thread_rows<true>(thread, body, own);
  } else if (thread.channels > 0) {
    sum_thread_rows<false>(thread, body, own);
  }
  for (int lanes = p.lanes; lanes > 1; lanes = (lanes + 1) / 2) {
    __syncthreads();
    const int half = (lanes + 1) / 2;
    if (thread.lane + half >= lanes) continue;
    for (int i = 0; i < 2 * kNormPerThread; ++i) own[i * kNormThreads] += own[i * kNormThreads + half * p.columns];
  }
  if (thread.lane > 0) return;
  float* target = args.partial_sums + thread.part * 2 * p.channels + thread.channel;
  for (int i = 0; i < thread.channels; ++i) {
    target[i] = own[2 * i * kNormThreads];
    target[p.channels + i] = own[(2 * i + 1) * kNormThreads];
  }
}

// Distributes the channels over the blocks; one thread calls body(channel, first sum, second sum).
template<typename Body>
GT_DEVICE void for_total_sums(const NormArgs& args, const NormPieces& p, const Body& body) {
  for (int64_t channel = blockIdx.x; channel < p.channels; channel += gridDim.x) {
    double first = 0.0, second = 0.0;
    for (int64_t part = threadIdx.x; part < p.parts; part += kNormThreads) {
      const float* sums = args.partial_sums + part * 2 * p.channels + channel;
      first += sums[0];
      second += sums[p.channels];
    }
    first = block_sum<kNormThreads>(first);
    second = block_sum<kNormThreads>(second);
    if (threadIdx.x == 0) body(channel, first, second);
  }
}

// Sums of (x - shift) and its square.
template<typename T>
struct NormMoments {
  using Row = NormRow<T>;
  static constexpr int kAtOnce = 4;
  const NormArgs& args;
  const NormThread& thread;
  const float* shifts;

  template<bool kWhole>
  GT_DEVICE Row load(int64_t row) const {
    return load_row<kWhole, T>(args.x, row * args.channels + thread.channel, thread.channels);
  }
  GT_DEVICE void add(const Row& x, NormSums* sums) const {
    for (int i = 0; i < kNormPerThread; ++i) {
      const float centred = to_float(x.values[i]) - shifts[i];
      sums->first[i] += centred;
      sums->second[i] += centred * centred;
    }
  }
};

// Sums of (x - shift) and its square, where shift(thread, values) fills in eight values.
template<typename T, typename Shift>
GT_DEVICE void sum_moments(const NormArgs& args, const NormPieces& p, const Shift& shift) {
  for (int64_t piece = blockIdx.x; piece < p.count(); piece += gridDim.x) {
    const NormThread thread = norm_thread(p, piece);
    float shifts[kNormPerThread] = {};
    shift(thread, shifts);
    sum_rows(args, p, thread, is_whole<T>(args, thread), NormMoments<T>{args, thread, shifts});
  }
}

template<typename T>
GT_DEVICE void sum_moments_about_values(const NormArgs& args, const NormPieces& p) {
  sum_moments<T>(args, p, [&](const NormThread& thread, float* shifts) {
    for (int i = 0; i < kNormPerThread; ++i) {
      if (i < thread.channels) shifts[i] = norm_shift<T>(args, thread.channel + i);
    }
  });
}

GT_DEVICE void move_statistics(const NormArgs& args, int64_t channel, float mean, float variance) {
  if (args.moving_mean == nullptr || args.pixels == 0.0) return;
  // Non-finite statistics are skipped, because they would never leave the average; x - x is 0 only for finite x.
  if (mean - mean != 0.0f || variance - variance != 0.0f) return;
  const double unbiased = args.pixels > 1.0 ? variance * (args.pixels / (args.pixels - 1.0)) : variance;
  float* moving_mean = args.moving_mean + channel;
  float* moving_variance = args.moving_variance + channel;
  *moving_mean = *moving_mean * (1.0f - args.rate) + mean * args.rate;
  *moving_variance = *moving_variance * (1.0f - args.rate) + static_cast<float>(unbiased) * args.rate;
}

template<typename T>
struct Normalise {
  using Row = NormRow<T>;
  static constexpr int kAtOnce = 4;
  const NormArgs& args;
  const NormThread& thread;
  const NormColumns& columns;

  template<bool kWhole>
  GT_DEVICE Row load(int64_t row) const {
    return load_row<kWhole, T>(args.x, row * args.channels + thread.channel, thread.channels);
  }
  GT_DEVICE void store(int64_t row, const Row& x) const {
    float values[kNormPerThread];
    for (int i = 0; i < kNormPerThread; ++i) {
      const float z = (to_float(x.values[i]) - columns.mean[i]) * columns.gain[i] + columns.bias[i];
      values[i] = args.silu ? z / (1.0f + expf(-z)) : z;
    }
    T* const out = static_cast<T*>(args.out) + row * args.channels + thread.channel;
    store_floats<kNormPerThread>(out, thread.channels, values);
  }
};

template<typename T>
GT_DEVICE void normalise_thread(const NormArgs& args, const NormThread& thread, const NormColumns& columns) {
  update_rows(thread, is_whole<T>(args, thread), Normalise<T>{args, thread, columns});
}

// The forward pass with the batch's statistics.
template<typename T>
GT_DEVICE void batch_norm(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  sum_moments_about_values<T>(args, p);
  grid_barrier(args.counters);
  for_total_sums(args, p, [&](int64_t channel, double sum, double squares) {
    const double offset = sum / args.pixels;
    double squared = squares / args.pixels - offset * offset;
    if (squared < 0.0) squared = 0.0;  // NaN is preserved
    const auto mean = static_cast<float>(norm_shift<T>(args, channel) + offset);
    const auto variance = static_cast<float>(squared);
    args.statistics[channel] = mean;
    args.statistics[args.channels + channel] = norm_inverse(variance, args.epsilon);
    move_statistics(args, channel, mean, variance);
  });
  grid_barrier(args.counters);
  for (int64_t piece = blockIdx.x; piece < p.count(); piece += gridDim.x) {
    const NormThread thread = norm_thread(p, piece);
    if (thread.channels == 0) continue;
    const NormColumns columns = norm_columns(args, thread, args.statistics, args.statistics + args.channels);
    normalise_thread<T>(args, thread, columns);
  }
  leave_grid(args.counters);
}

// The forward pass with given statistics, one block per piece. Blocks of the first part of the rows store the
// statistics.
template<typename T>
GT_DEVICE void normalise(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  const NormThread thread = norm_thread(p, blockIdx.x);
  if (thread.channels == 0) return;
  float inverse[kNormPerThread], gamma[kNormPerThread];
  NormColumns columns;
  load_channels(args.mean, thread, columns.mean);
  load_channels(args.variance, thread, inverse);
  load_channels(args.gamma, thread, gamma);
  load_channels(args.beta, thread, columns.bias);
  const bool stores = thread.part == 0 && thread.lane == 0;
  for (int i = 0; i < kNormPerThread; ++i) {
    const float variance = inverse[i];
    inverse[i] = norm_inverse(variance, args.epsilon);
    columns.gain[i] = gamma[i] * inverse[i];
    if (stores && i < thread.channels) move_statistics(args, thread.channel + i, columns.mean[i], variance);
  }
  if (stores) {
    store_floats<kNormPerThread>(args.statistics + thread.channel, thread.channels, columns.mean);
    store_floats<kNormPerThread>(args.statistics + args.channels + thread.channel, thread.channels, inverse);
  }
  normalise_thread<T>(args, thread, columns);
}

// Common to all gradient kernels: x - mean, and dz, the gradient before the optional SiLU.
template<typename T>
struct NormGradient {
  struct Row {
    NormRow<T> x, dy;
  };
  static constexpr int kAtOnce = sizeof(T) == 2 ? 2 : 1;  // more do not fit into the registers
  const NormArgs& args;
  const NormThread& thread;
  const NormColumns& columns;

  template<bool kWhole>
  GT_DEVICE Row load(int64_t row) const {
    const int64_t place = row * args.channels + thread.channel;
    return {load_row<kWhole, T>(args.x, place, thread.channels), load_row<kWhole, T>(args.dy, place, thread.channels)};
  }
  GT_DEVICE float centred(const Row& row, int i) const { return to_float(row.x.values[i]) - columns.mean[i]; }
  GT_DEVICE float dz(const Row& row, int i) const {
    const float dy = to_float(row.dy.values[i]);
    return args.silu ? dy * norm_silu_slope(centred(row, i) * columns.gain[i] + columns.bias[i]) : dy;
  }
  GT_DEVICE void add(const Row& row, NormSums* sums) const {
    for (int i = 0; i < kNormPerThread; ++i) {
      sums->first[i] += dz(row, i);
      sums->second[i] += dz(row, i) * centred(row, i);
    }
  }
};

template<typename T>
GT_DEVICE void sum_gradients(const NormArgs& args, const NormPieces& p) {
  for (int64_t piece = blockIdx.x; piece < p.count(); piece += gridDim.x) {
    const NormThread thread = norm_thread(p, piece);
    const NormColumns columns = norm_columns(args, thread, args.statistics, args.statistics + args.channels);
    sum_rows(args, p, thread, is_whole<T>(args, thread), NormGradient<T>{args, thread, columns});
  }
}

// dx = (dz - d_beta / pixels - (x - mean) / deviation * d_gamma / pixels) * gain.
template<typename T>
struct InputGradient : NormGradient<T> {
  using Row = typename NormGradient<T>::Row;
  const float* offset;
  const float* slope;

  GT_DEVICE void store(int64_t row, const Row& values) const {
    float dx[kNormPerThread];
    for (int i = 0; i < kNormPerThread; ++i) {
      dx[i] = (this->dz(values, i) - offset[i] - this->centred(values, i) * slope[i]) * this->columns.gain[i];
    }
    T* const out = static_cast<T*>(this->args.out) + row * this->args.channels + this->thread.channel;
    store_floats<kNormPerThread>(out, this->thread.channels, dx);
  }
};

template<typename T>
GT_DEVICE void gradient_of_thread(const NormArgs& args, const NormThread& thread, const float* d_beta,
                                  const float* d_gamma) {
  const NormColumns columns = norm_columns(args, thread, args.statistics, args.statistics + args.channels);
  float offset[kNormPerThread] = {}, slope[kNormPerThread] = {};
  if (args.statistics_of_batch) {
    const auto pixels = static_cast<float>(args.pixels);
    float inverse[kNormPerThread];
    load_channels(d_beta, thread, offset);
    load_channels(d_gamma, thread, slope);
    load_channels(args.statistics + args.channels, thread, inverse);
    for (int i = 0; i < kNormPerThread; ++i) {
      offset[i] = offset[i] / pixels;
      slope[i] = slope[i] * inverse[i] / pixels;
    }
  }
  update_rows(thread, is_whole<T>(args, thread), InputGradient<T>{{args, thread, columns}, offset, slope});
}

// The backward pass.
template<typename T>
GT_DEVICE void batch_norm_grad(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  sum_gradients<T>(args, p);
  grid_barrier(args.counters);
  for_total_sums(args, p, [&](int64_t channel, double sum, double product) {
    args.d_beta[channel] = static_cast<float>(sum);
    args.d_gamma[channel] = static_cast<float>(product * args.statistics[args.channels + channel]);
  });
  grid_barrier(args.counters);
  for (int64_t piece = blockIdx.x; piece < p.count(); piece += gridDim.x) {
    const NormThread thread = norm_thread(p, piece);
    if (thread.channels > 0) gradient_of_thread<T>(args, thread, args.d_beta, args.d_gamma);
  }
  leave_grid(args.counters);
}

// This rank's part of the mean over all ranks' pixels.
template<typename T>
GT_DEVICE void channel_mean(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  sum_moments_about_values<T>(args, p);
  grid_barrier(args.counters);
  for_total_sums(args, p, [&](int64_t channel, double sum, double) {
    const double about_zero = sum + static_cast<double>(norm_shift<T>(args, channel)) * args.rows;
    args.statistics[channel] = static_cast<float>(about_zero / args.pixels);
  });
  leave_grid(args.counters);
}

template<typename T>
GT_DEVICE void channel_variance(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  sum_moments<T>(args, p, [&](const NormThread& thread, float* shifts) { load_channels(args.mean, thread, shifts); });
  grid_barrier(args.counters);
  for_total_sums(args, p, [&](int64_t channel, double, double squares) {
    args.statistics[channel] = static_cast<float>(squares / args.pixels);
  });
  leave_grid(args.counters);
}

template<typename T>
GT_DEVICE void normalise_sums(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  sum_gradients<T>(args, p);
  grid_barrier(args.counters);
  for_total_sums(args, p, [&](int64_t channel, double sum, double product) {
    const auto d_beta = static_cast<float>(sum);
    const auto d_gamma = static_cast<float>(product * args.statistics[args.channels + channel]);
    args.both[channel] = args.d_beta[channel] = d_beta;
    args.both[args.channels + channel] = args.d_gamma[channel] = d_gamma;
  });
  leave_grid(args.counters);
}

// dx from given sums, one block per piece.
template<typename T>
GT_DEVICE void normalise_grad(const NormArgs& args) {
  const NormPieces p = norm_pieces(args.rows, args.channels, gridDim.x);
  const NormThread thread = norm_thread(p, blockIdx.x);
  if (thread.channels > 0) gradient_of_thread<T>(args, thread, args.both, args.both + args.channels);
}

GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, batch_norm, NormArgs, kNormThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, batch_norm_grad, NormArgs, kNormThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, channel_mean, NormArgs, kNormThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, channel_variance, NormArgs, kNormThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_BLOCK_KERNEL, normalise_sums, NormArgs, kNormThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, normalise, NormArgs, kNormThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, normalise_grad, NormArgs, kNormThreads)

}  // namespace graph_train
