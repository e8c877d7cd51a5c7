// Our max pooling of (B, H, W, C) activations on the CPU, for float and Bfloat16.
#include <cstring>
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

// A larger value or NaN wins, so the first of equals stays.
template<typename T>
GT_INLINE void take_larger_of(const T* x, float* best, int32_t* where, int64_t n, int32_t tap) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = to_float(x[i]);
    const bool wins = value > best[i] || value != value;
    best[i] = wins ? value : best[i];
    where[i] = wins ? tap : where[i];
  }
}
GT_VECTOR void take_larger(const float* x, float* best, int32_t* where, int64_t n, int32_t tap) {
  take_larger_of(x, best, where, n, tap);
}
GT_VECTOR void take_larger(const Bfloat16* x, float* best, int32_t* where, int64_t n, int32_t tap) {
  take_larger_of(x, best, where, n, tap);
}

template<typename T>
GT_INLINE void add_chosen_of(const T* dy, const int32_t* where, float* sums, int64_t n, int32_t tap) {
  for (int64_t i = 0; i < n; ++i) sums[i] += where[i] == tap ? to_float(dy[i]) : 0.0f;
}
GT_VECTOR void add_chosen(const float* dy, const int32_t* where, float* sums, int64_t n, int32_t tap) {
  add_chosen_of(dy, where, sums, n, tap);
}
GT_VECTOR void add_chosen(const Bfloat16* dy, const int32_t* where, float* sums, int64_t n, int32_t tap) {
  add_chosen_of(dy, where, sums, n, tap);
}

// Calls body(first number of the input's row, first of the output's, count) for the columns whose tap `j` lies inside.
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

// Where nothing is larger than -infinity, it is the window's first tap inside the image.
void start_row(const PoolShape& s, int64_t out_row, float* best, int32_t* where) {
  std::fill_n(best, s.out_columns * s.channels, -std::numeric_limits<float>::infinity());
  const int64_t i = std::max<int64_t>(0, s.padding - out_row * s.stride);
  for (int64_t column = 0; column < s.out_columns; ++column) {
    const int64_t j = std::max<int64_t>(0, s.padding - column * s.stride);
    std::fill_n(where + column * s.channels, s.channels, static_cast<int32_t>(i * s.kernel + j));
  }
}

template<typename T>
void pool_row(const PoolShape& s, const T* x, int64_t out_row, float* best, int32_t* where) {
  start_row(s, out_row, best, where);
  for (int64_t i = 0; i < s.kernel; ++i) {
    const int64_t row = out_row * s.stride - s.padding + i;
    if (row < 0 || row >= s.rows) continue;
    const T* source = x + row * s.columns * s.channels;
    for (int64_t j = 0; j < s.kernel; ++j) {
      for_columns(s, j, [&](int64_t in, int64_t out, int64_t count) {
        take_larger(source + in, best + out, where + out, count, static_cast<int32_t>(i * s.kernel + j));
      });
    }
  }
}

template<typename T>
class OwnMaxPoolKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
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
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// Sums of one input row over the windows that chose it, from the first window to the last.
template<typename T>
void gather_row(const PoolShape& s, const T* dy, const int32_t* where, int64_t row, float* sums) {
  std::fill_n(sums, s.columns * s.channels, 0.0f);
  for (int64_t i = s.kernel - 1; i >= 0; --i) {
    const int64_t start = row + s.padding - i;
    if (start < 0 || start % s.stride != 0 || start / s.stride >= s.out_rows) continue;
    const int64_t of_row = start / s.stride * s.out_columns * s.channels;
    for (int64_t j = s.kernel - 1; j >= 0; --j) {
      for_columns(s, j, [&](int64_t in, int64_t out, int64_t count) {
        add_chosen(dy + of_row + out, where + of_row + out, sums + in, count, static_cast<int32_t>(i * s.kernel + j));
      });
    }
  }
}

template<typename T>
class OwnMaxPoolGradKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const PoolShape s = shape_of(integers_of(ctx), view_of(ctx, "out"), view_of(ctx, "dy"));
    const T* dy = data_of<T>(ctx, "dy");
    const auto* where = data_of<int32_t>(ctx, "where");
    T* dx = result_of<T>(ctx);
    const int64_t numbers = s.columns * s.channels;
    const int64_t image = s.out_rows * s.out_columns * s.channels;
    parallel_for(s.batch * s.rows, 1 + 4096 / std::max<int64_t>(1, numbers), [&](int64_t begin, int64_t end) {
      std::vector<float> sums(std::is_same_v<T, float> ? 0 : numbers);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t from = r / s.rows * image;
        if constexpr (std::is_same_v<T, float>) {
          gather_row(s, dy + from, where + from, r % s.rows, dx + r * numbers);
        } else {
          gather_row(s, dy + from, where + from, r % s.rows, sums.data());
          vector_kernels().round(sums.data(), dx + r * numbers, numbers);
        }
      }
    });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CPU_ACTIVATION_KERNEL("graph_train_max_pool", OwnMaxPoolKernel, GT_ALWAYS);
GT_CPU_KERNEL("graph_train_max_pool_grad", OwnMaxPoolGradKernel<float>, GT_IS_FLOAT("dy"));
GT_CPU_KERNEL("graph_train_max_pool_grad", OwnMaxPoolGradKernel<Bfloat16>, GT_IS_BFLOAT16("dy"));

}  // namespace

}  // namespace graph_train
