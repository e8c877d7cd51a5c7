// Our max pooling of (B, H, W, C) activations on the CPU, for float and Bfloat16.
#include <limits>
#include <vector>

#include "native/attributes.h"
#include "native/number_types.h"
#include "native/vector_kernels.h"
#include "ops/pooling/pooling.h"

namespace graph_train {

namespace {

PoolShape shape_of(const std::vector<int64_t>& integers, const oneflow::ShapeView& x, const oneflow::ShapeView& y) {
  return {y.At(0), x.At(1), x.At(2), x.At(3), y.At(1), y.At(2), integers.at(0), integers.at(1), integers.at(2)};
}

// A larger value or NaN wins, so the first of equal values is kept.
template<typename T>
GT_INLINE void update_max_of(const T* x, float* best, int32_t* where, int64_t n, int32_t tap) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = to_float(x[i]);
    const bool wins = value > best[i] || value != value;
    best[i] = wins ? value : best[i];
    where[i] = wins ? tap : where[i];
  }
}
GT_VECTOR void update_max(const float* x, float* best, int32_t* where, int64_t n, int32_t tap) {
  update_max_of(x, best, where, n, tap);
}
GT_VECTOR void update_max(const Bfloat16* x, float* best, int32_t* where, int64_t n, int32_t tap) {
  update_max_of(x, best, where, n, tap);
}

// Calls body(first element of the input row, first of the output row, count) for the columns whose tap `j` is inside
// the image.
template<typename Body>
GT_INLINE void for_columns(const PoolShape& s, int64_t j, const Body& body) {
  const int64_t offset = j - s.padding;
  const int64_t first = offset >= 0 ? 0 : (-offset + s.stride - 1) / s.stride;
  const int64_t last = s.columns - 1 < offset ? 0 : std::min(s.out_columns, (s.columns - 1 - offset) / s.stride + 1);
  if (s.stride == 1 && first < last) {
    body((first + offset) * s.channels, first * s.channels, (last - first) * s.channels);
    return;
  }
  for (int64_t column = first; column < last; ++column) {
    body((column * s.stride + offset) * s.channels, column * s.channels, s.channels);
  }
}

// Initialises a row; if no value is above -infinity, the maximum is the first tap inside the image.
void init_row(const PoolShape& s, int64_t out_row, float* best, int32_t* where) {
  std::fill_n(best, s.out_columns * s.channels, -std::numeric_limits<float>::infinity());
  const int64_t i = std::max<int64_t>(0, s.padding - out_row * s.stride);
  for (int64_t column = 0; column < s.out_columns; ++column) {
    const int64_t j = std::max<int64_t>(0, s.padding - column * s.stride);
    std::fill_n(where + column * s.channels, s.channels, static_cast<int32_t>(i * s.kernel + j));
  }
}

template<typename T>
void pool_row(const PoolShape& s, const T* x, int64_t out_row, float* best, int32_t* where) {
  init_row(s, out_row, best, where);
  for (int64_t i = 0; i < s.kernel; ++i) {
    const int64_t row = out_row * s.stride - s.padding + i;
    if (row < 0 || row >= s.rows) continue;
    const T* source = x + row * s.columns * s.channels;
    for (int64_t j = 0; j < s.kernel; ++j) {
      for_columns(s, j, [&](int64_t in, int64_t out, int64_t count) {
        update_max(source + in, best + out, where + out, count, static_cast<int32_t>(i * s.kernel + j));
      });
    }
  }
}

template<typename T>
class OwnMaxPoolKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const PoolShape s = shape_of(integers_of(ctx), view_of(ctx, "x"), view_of(ctx, "out"));
    const T* x = data_of<T>(ctx, "x");
    T* y = result_of<T>(ctx, "out", 0);
    auto* where = result_of<int32_t>(ctx, "out", 1);
    const int64_t numbers = s.out_columns * s.channels;
    parallel_for(s.batch * s.out_rows, 1 + 4096 / std::max<int64_t>(1, numbers), [&](int64_t begin, int64_t end) {
      std::vector<float> best(std::is_same_v<T, float> ? 0 : numbers);
      for (int64_t r = begin; r < end; ++r) {
        const T* image = x + r / s.out_rows * s.rows * s.columns * s.channels;
        if constexpr (std::is_same_v<T, float>) {
          pool_row(s, image, r % s.out_rows, y + r * numbers, where + r * numbers);
        } else {
          pool_row(s, image, r % s.out_rows, best.data(), where + r * numbers);
          vector_kernels().round(best.data(), y + r * numbers, numbers);
        }
      }
    });
  }
};

// Adds the gradient of each window to its maximum, for the channels [first, last) of one image, from the first window
// to the last. `sums` has `step` elements per pixel and begins with channel `first`.
template<typename T>
void scatter(const PoolShape& s, const T* dy, const int32_t* where, int64_t first, int64_t last, float* sums,
             int64_t step) {
  std::vector<int64_t> offsets(s.kernel * s.kernel);
  for (int64_t tap = 0; tap < s.kernel * s.kernel; ++tap) {
    offsets[tap] = (tap / s.kernel * s.columns + tap % s.kernel) * step;
  }
  for (int64_t pixel = 0; pixel < s.rows * s.columns; ++pixel) std::fill_n(sums + pixel * step, last - first, 0.0f);
  for (int64_t row = 0; row < s.out_rows; ++row) {
    for (int64_t column = 0; column < s.out_columns; ++column) {
      const int64_t corner = (row * s.stride - s.padding) * s.columns + column * s.stride - s.padding;
      const int64_t window = (row * s.out_columns + column) * s.channels;
      for (int64_t c = first; c < last; ++c) {
        sums[corner * step + offsets[where[window + c]] + c - first] += to_float(dy[window + c]);
      }
    }
  }
}

// Channels per thread if there are fewer images than threads.
constexpr int64_t kChannelsPerThread = 64;

template<typename T>
class OwnMaxPoolGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const PoolShape s = shape_of(integers_of(ctx), view_of(ctx, "out"), view_of(ctx, "dy"));
    const T* dy = data_of<T>(ctx, "dy");
    const auto* where = data_of<int32_t>(ctx, "where");
    T* dx = result_of<T>(ctx);
    const int64_t pixels = s.rows * s.columns, out_pixels = s.out_rows * s.out_columns;
    const int64_t width = s.batch >= num_threads() ? s.channels : std::min(kChannelsPerThread, s.channels);
    const int64_t groups = (s.channels + width - 1) / width;
    parallel_for(s.batch * groups, 1 + 4096 / (pixels * width), [&](int64_t begin, int64_t end) {
      std::vector<float> sums(std::is_same_v<T, float> ? 0 : pixels * width);
      for (int64_t part = begin; part < end; ++part) {
        const int64_t image = part / groups, first = part % groups * width;
        const int64_t last = std::min(first + width, s.channels);
        const int64_t from = image * out_pixels * s.channels;
        T* target = dx + image * pixels * s.channels + first;
        if constexpr (std::is_same_v<T, float>) {
          scatter(s, dy + from, where + from, first, last, target, s.channels);
        } else {
          scatter(s, dy + from, where + from, first, last, sums.data(), width);
          for (int64_t pixel = 0; pixel < pixels; ++pixel) {
            vector_kernels().round(&sums[pixel * width], target + pixel * s.channels, last - first);
          }
        }
      }
    });
  }
};

GT_CPU_ACTIVATION_KERNEL("graph_train_max_pool", OwnMaxPoolKernel, GT_ALWAYS);
GT_CPU_KERNEL("graph_train_max_pool_grad", OwnMaxPoolGradKernel<float>, GT_IS_FLOAT("dy"));
GT_CPU_KERNEL("graph_train_max_pool_grad", OwnMaxPoolGradKernel<Bfloat16>, GT_IS_BFLOAT16("dy"));

}  // namespace

}  // namespace graph_train
