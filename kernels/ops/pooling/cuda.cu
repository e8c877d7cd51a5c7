// Upsampling and max pooling of (B, H, W, C) activations: a thread processes consecutive channels of one pixel.
#include "native/cuda/device.h"
#include "ops/pooling/pooling.h"

namespace graph_train {

// Calls body(pixel, first channel, number of channels) for this thread's part of an array (pixels, channels).
template<typename Body>
GT_DEVICE void for_thread_channels(int64_t pixels, int64_t channels, const Body& body) {
  const int64_t groups = (channels + kPoolPerThread - 1) / kPoolPerThread;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= pixels * groups) return;
  const int64_t pixel = item / groups;
  const int64_t channel = (item - pixel * groups) * kPoolPerThread;
  const int64_t left = channels - channel;
  body(pixel, channel, left < kPoolPerThread ? static_cast<int>(left) : kPoolPerThread);
}

// One thread per group of channels of the small activation, so that each element is read once.
template<typename T>
GT_DEVICE void upsample(const UpsampleArgs& args) {
  for_thread_channels(args.rows * args.columns, args.channels, [&](int64_t pixel, int64_t channel, int number) {
    float values[kPoolPerThread] = {};
    load_floats<kPoolPerThread>(static_cast<const T*>(args.in) + pixel * args.channels + channel, number, values);
    const int64_t row = pixel / args.columns, column = pixel - row * args.columns;
    for (int64_t i = 0; i < args.factor; ++i) {
      for (int64_t j = 0; j < args.factor; ++j) {
        const int64_t to = (row * args.factor + i) * args.columns * args.factor + column * args.factor + j;
        store_floats<kPoolPerThread>(static_cast<T*>(args.out) + to * args.channels + channel, number, values);
      }
    }
  });
}

// Sums are float and rounded once.
template<typename T>
GT_DEVICE void upsample_grad(const UpsampleArgs& args) {
  for_thread_channels(args.rows * args.columns, args.channels, [&](int64_t pixel, int64_t channel, int number) {
    float sums[kPoolPerThread] = {}, values[kPoolPerThread] = {};
    const int64_t row = pixel / args.columns, column = pixel - row * args.columns;
    for (int64_t i = 0; i < args.factor; ++i) {
#pragma unroll 1  // more at once take registers that sm_70 does not have
      for (int64_t j = 0; j < args.factor; ++j) {
        const int64_t from = (row * args.factor + i) * args.columns * args.factor + column * args.factor + j;
        load_floats<kPoolPerThread>(static_cast<const T*>(args.in) + from * args.channels + channel, number, values);
        for (int k = 0; k < kPoolPerThread; ++k) sums[k] += values[k];
      }
    }
    store_floats<kPoolPerThread>(static_cast<T*>(args.out) + pixel * args.channels + channel, number, sums);
  });
}

// A larger value or NaN wins, so the first of equal values is kept, also if all are -infinity.
template<typename T>
GT_DEVICE void max_pool(const PoolArgs& args) {
  const PoolShape s = args.shape;
  for_thread_channels(
      s.batch * s.out_rows * s.out_columns, s.channels, [&](int64_t pixel, int64_t channel, int number) {
        const int64_t out_row = pixel / s.out_columns, out_column = pixel - out_row * s.out_columns;
        const int64_t image = out_row / s.out_rows;
        const int64_t top = (out_row - image * s.out_rows) * s.stride - s.padding;
        const int64_t left = out_column * s.stride - s.padding;
        const T* x = static_cast<const T*>(args.in) + image * s.rows * s.columns * s.channels + channel;
        float best[kPoolPerThread] = {}, values[kPoolPerThread] = {};
        int32_t where[kPoolPerThread];
        bool started = false;
        for (int64_t i = 0; i < s.kernel; ++i) {
          if (top + i < 0 || top + i >= s.rows) continue;
          for (int64_t j = 0; j < s.kernel; ++j) {
            if (left + j < 0 || left + j >= s.columns) continue;
            load_floats<kPoolPerThread>(x + ((top + i) * s.columns + left + j) * s.channels, number, values);
            for (int k = 0; k < kPoolPerThread; ++k) {
              if (started && !(values[k] > best[k] || values[k] != values[k])) continue;
              best[k] = values[k];
              where[k] = static_cast<int32_t>(i * s.kernel + j);
            }
            started = true;
          }
        }
        const int64_t to = pixel * s.channels + channel;
        store_floats<kPoolPerThread>(static_cast<T*>(args.out) + to, number, best);
        for (int k = 0; k < kPoolPerThread; ++k) {
          if (k < number) args.where[to + k] = where[k];
        }
      });
}

// Each input pixel adds the gradients of the windows whose maximum it is, from the first to the last.
template<typename T>
GT_DEVICE void max_pool_grad(const PoolArgs& args) {
  const PoolShape s = args.shape;
  for_thread_channels(s.batch * s.rows * s.columns, s.channels, [&](int64_t pixel, int64_t channel, int number) {
    const int64_t in_row = pixel / s.columns, column = pixel - in_row * s.columns;
    const int64_t image = in_row / s.rows, row = in_row - image * s.rows;
    float sums[kPoolPerThread] = {}, values[kPoolPerThread] = {};
    for (int64_t i = s.kernel - 1; i >= 0; --i) {
      const int64_t top = row + s.padding - i;
      if (top < 0 || top % s.stride != 0 || top / s.stride >= s.out_rows) continue;
      for (int64_t j = s.kernel - 1; j >= 0; --j) {
        const int64_t left = column + s.padding - j;
        if (left < 0 || left % s.stride != 0 || left / s.stride >= s.out_columns) continue;
        const int64_t window = (image * s.out_rows + top / s.stride) * s.out_columns + left / s.stride;
        const int64_t from = window * s.channels + channel;
        load_floats<kPoolPerThread>(static_cast<const T*>(args.in) + from, number, values);
        for (int k = 0; k < kPoolPerThread; ++k) {
          if (k < number && args.where[from + k] == i * s.kernel + j) sums[k] += values[k];
        }
      }
    }
    store_floats<kPoolPerThread>(static_cast<T*>(args.out) + pixel * s.channels + channel, number, sums);
  });
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, upsample, UpsampleArgs, kPoolThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, upsample_grad, UpsampleArgs, kPoolThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, max_pool, PoolArgs, kPoolThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, max_pool_grad, PoolArgs, kPoolThreads)

}  // namespace graph_train
