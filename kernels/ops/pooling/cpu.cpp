// OneFlow's ops max_pool_2d, upsample_nearest_2d and their gradients for float, and our own channels-last
// upsampling for float and Bfloat16; our own max pool is in max_pool.cpp.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "native/attributes.h"
#include "native/common.h"
#include "native/stock_ops.h"
#include "native/vector_kernels.h"

namespace graph_train {

namespace {

// A pooling of one plane (step 1) or of one channels-last image (step = channels).
struct Window {
  int64_t in_rows, in_columns, out_rows, out_columns, step;
  int64_t kernel_rows, kernel_columns, stride_rows, stride_columns, pad_rows, pad_columns, dilation_rows,
      dilation_columns;
};

// Updates the maxima `best` and their indices `where` of one output row. A larger value or NaN wins, so the first of
// equal values is kept.
GT_VECTOR void update_max(const float* x, float* best, int32_t* where, int64_t n, int64_t stride, int32_t first,
                          int32_t index_step) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i * stride];
    const bool wins = value > best[i] || value != value;
    best[i] = wins ? value : best[i];
    where[i] = wins ? first + static_cast<int32_t>(i) * index_step : where[i];
  }
}

// The output columns [first, last) for which the tap at `offset` is inside the input.
void valid_columns(int64_t in, int64_t out, int64_t stride, int64_t offset, int64_t* first, int64_t* last) {
  *first = offset >= 0 ? 0 : (-offset + stride - 1) / stride;
  *last = std::min(out, (in - 1 - offset) / stride + 1);
  if (in - 1 - offset < 0) *last = 0;
}

void pool_row(const Window& w, const float* x, int64_t out_row, float* best, int32_t* where) {
  const int64_t numbers = w.out_columns * w.step;
  std::fill(best, best + numbers, -std::numeric_limits<float>::infinity());
  // If no value is above -infinity, OneFlow returns the first index of the window.
  bool started = false;
  for (int64_t i = 0; i < w.kernel_rows; ++i) {
    const int64_t row = out_row * w.stride_rows - w.pad_rows + i * w.dilation_rows;
    if (row < 0 || row >= w.in_rows) continue;
    if (!started) {
      for (int64_t column = 0; column < w.out_columns; ++column) {
        int64_t start = column * w.stride_columns - w.pad_columns;
        while (start < 0) start += w.dilation_columns;
        for (int64_t c = 0; c < w.step; ++c) {
          where[column * w.step + c] =
              static_cast<int32_t>((row * w.in_columns + start) * w.step + (w.step > 1 ? c : 0));
        }
      }
      started = true;
    }
    for (int64_t j = 0; j < w.kernel_columns; ++j) {
      const int64_t offset = j * w.dilation_columns - w.pad_columns;
      int64_t first, last;
      valid_columns(w.in_columns, w.out_columns, w.stride_columns, offset, &first, &last);
      if (first >= last) continue;
      if (w.step == 1) {
        const int64_t at = row * w.in_columns + first * w.stride_columns + offset;
        update_max(x + at, best + first, where + first, last - first, w.stride_columns, static_cast<int32_t>(at),
                   static_cast<int32_t>(w.stride_columns));
        continue;
      }
      if (w.stride_columns == 1) {
        const int64_t at = (row * w.in_columns + first + offset) * w.step;
        update_max(x + at, best + first * w.step, where + first * w.step, (last - first) * w.step, 1,
                   static_cast<int32_t>(at), 1);
        continue;
      }
      for (int64_t column = first; column < last; ++column) {
        const int64_t at = (row * w.in_columns + column * w.stride_columns + offset) * w.step;
        update_max(x + at, best + column * w.step, where + column * w.step, w.step, 1, static_cast<int32_t>(at), 1);
      }
    }
  }
}

Window window_of(const user_op::KernelComputeContext* ctx, const oneflow::ShapeView& x, const oneflow::ShapeView& y) {
  const bool last = is_channels_last(ctx);
  const int row = last ? 1 : 2;
  const auto& kernel = ctx->Attr<std::vector<int32_t>>("kernel_size");
  const auto& stride = ctx->Attr<std::vector<int32_t>>("stride");
  const auto& padding = ctx->Attr<std::vector<int32_t>>("padding");
  const auto& dilation = ctx->Attr<std::vector<int32_t>>("dilation");
  return {x.At(row), x.At(row + 1), y.At(row),  y.At(row + 1), last ? x.At(3) : 1, kernel[0],  kernel[1],
          stride[0], stride[1],     padding[0], padding[1],    dilation[0],        dilation[1]};
}

class MaxPoolKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* x = ctx->Tensor4ArgNameAndIndex("x", 0);
    auto* y = ctx->Tensor4ArgNameAndIndex("y", 0);
    if (y->shape_view().elem_cnt() == 0) return;
    const Window w = window_of(ctx, x->shape_view(), y->shape_view());
    const float* source = x->dptr<float>();
    float* target = y->mut_dptr<float>();
    auto* index = ctx->Tensor4ArgNameAndIndex("indice", 0)->mut_dptr<int64_t>();
    const int64_t plane = w.in_rows * w.in_columns * w.step;
    const int64_t numbers = w.out_columns * w.step;
    const int64_t rows = y->shape_view().elem_cnt() / numbers;
    parallel_for(rows, std::max<int64_t>(1, 4096 / numbers), [&](int64_t begin, int64_t end) {
      std::vector<int32_t> where(numbers);
      for (int64_t r = begin; r < end; ++r) {
        pool_row(w, source + r / w.out_rows * plane, r % w.out_rows, target + r * numbers, where.data());
        std::copy(where.begin(), where.end(), index + r * numbers);
      }
    });
  }
};

class MaxPoolGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* dy = ctx->Tensor4ArgNameAndIndex("dy", 0);
    auto* dx = ctx->Tensor4ArgNameAndIndex("dx", 0);
    if (dy->shape_view().elem_cnt() == 0) return;
    const bool last = is_channels_last(ctx);
    const float* source = dy->dptr<float>();
    const auto* index = ctx->Tensor4ArgNameAndIndex("indice", 0)->dptr<int64_t>();
    float* target = dx->mut_dptr<float>();
    // Images are independent of each other; with channels first, so are planes.
    const int64_t parts = dy->shape_view().At(0) * (last ? 1 : dy->shape_view().At(1));
    const int64_t out_numbers = dy->shape_view().elem_cnt() / parts;
    const int64_t in_numbers = dx->shape_view().elem_cnt() / parts;
    parallel_for(parts, std::max<int64_t>(1, 4096 / out_numbers), [=](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        float* out = target + p * in_numbers;
        std::memset(out, 0, in_numbers * sizeof(float));
        for (int64_t i = p * out_numbers; i < (p + 1) * out_numbers; ++i) out[index[i]] += source[i];
      }
    });
  }
};

// Upsampling by integer factors; each cell has `step` contiguous elements.
struct Upsampling {
  int64_t planes, rows, columns, step, row_factor, column_factor;
};

template<typename T>
GT_INLINE void repeat_cells_of(const T* x, T* y, int64_t columns, int64_t step, int64_t factor) {
  if (step == 1 && factor == 2) {
    for (int64_t c = 0; c < columns; ++c) y[2 * c] = y[2 * c + 1] = x[c];
    return;
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t f = 0; f < factor; ++f) {
      for (int64_t s = 0; s < step; ++s) y[(c * factor + f) * step + s] = x[c * step + s];
    }
  }
}

GT_VECTOR void repeat_cells(const float* x, float* y, int64_t columns, int64_t step, int64_t factor) {
  repeat_cells_of(x, y, columns, step, factor);
}

GT_VECTOR void repeat_cells(const Bfloat16* x, Bfloat16* y, int64_t columns, int64_t step, int64_t factor) {
  repeat_cells_of(x, y, columns, step, factor);
}

template<typename T>
GT_INLINE void sum_cells_of(const T* dy, float* sums, int64_t columns, int64_t step, int64_t factor) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t f = 0; f < factor; ++f) {
      for (int64_t s = 0; s < step; ++s) sums[c * step + s] += to_float(dy[(c * factor + f) * step + s]);
    }
  }
}

GT_VECTOR void sum_cells(const float* dy, float* sums, int64_t columns, int64_t step, int64_t factor) {
  sum_cells_of(dy, sums, columns, step, factor);
}

GT_VECTOR void sum_cells(const Bfloat16* dy, float* sums, int64_t columns, int64_t step, int64_t factor) {
  sum_cells_of(dy, sums, columns, step, factor);
}

void store(const float* sums, float* dx, int64_t n) { std::memcpy(dx, sums, n * sizeof(float)); }
void store(const float* sums, Bfloat16* dx, int64_t n) { vector_kernels().round(sums, dx, n); }

template<typename T>
void upsample(const Upsampling& m, const T* x, T* y) {
  const int64_t in_row = m.columns * m.step;
  const int64_t out_row = in_row * m.column_factor;
  parallel_for(m.planes * m.rows, std::max<int64_t>(1, 4096 / in_row), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* out = y + r * m.row_factor * out_row;
      repeat_cells(x + r * in_row, out, m.columns, m.step, m.column_factor);
      for (int64_t copy = 1; copy < m.row_factor; ++copy) std::memcpy(out + copy * out_row, out, out_row * sizeof(T));
    }
  });
}

// Sums are float and rounded once.
template<typename T>
void upsample_gradient(const Upsampling& m, const T* dy, T* dx) {
  const int64_t in_row = m.columns * m.step;
  const int64_t out_row = in_row * m.column_factor;
  parallel_for(m.planes * m.rows, std::max<int64_t>(1, 4096 / in_row), [&](int64_t begin, int64_t end) {
    std::vector<float> sums(in_row);
    for (int64_t r = begin; r < end; ++r) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t copy = 0; copy < m.row_factor; ++copy) {
        sum_cells(dy + (r * m.row_factor + copy) * out_row, sums.data(), m.columns, m.step, m.column_factor);
      }
      store(sums.data(), dx + r * in_row, in_row);
    }
  });
}

Upsampling channels_first(const oneflow::ShapeView& small, const oneflow::ShapeView& large) {
  return {small.At(0) * small.At(1), small.At(2), small.At(3), 1, large.At(2) / small.At(2), large.At(3) / small.At(3)};
}

Upsampling channels_last(const oneflow::ShapeView& small, const oneflow::ShapeView& large) {
  return {small.At(0), small.At(1), small.At(2), small.At(3), large.At(1) / small.At(1), large.At(2) / small.At(2)};
}

using Layout = Upsampling (*)(const oneflow::ShapeView&, const oneflow::ShapeView&);

template<Layout layout, typename T = float>
class UpsampleKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    constexpr bool kOurOp = layout == channels_last;
    const char* x = kOurOp ? "in" : "x";
    const char* y = kOurOp ? "out" : "y";
    upsample(layout(view_of(ctx, x), view_of(ctx, y)), data_of<T>(ctx, x), result_of<T>(ctx, y));
  }
};

template<Layout layout, typename T = float>
class UpsampleGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    constexpr bool kOurOp = layout == channels_last;
    const char* dy = kOurOp ? "in" : "dy";
    const char* dx = kOurOp ? "out" : "dx";
    upsample_gradient(layout(view_of(ctx, dx), view_of(ctx, dy)), data_of<T>(ctx, dy), result_of<T>(ctx, dx));
  }
};

// Other factors, and scale attributes that disagree with the shapes, are left to OneFlow's kernel.
auto has_integer_factors(const char* small, const char* large) {
  return oneflow::hob::make_custom("integer upsampling factors", [=](const user_op::KernelRegContext& ctx) {
    const auto& from = ctx.TensorDesc4ArgNameAndIndex(small, 0)->shape();
    const auto& to = ctx.TensorDesc4ArgNameAndIndex(large, 0)->shape();
    if (from.elem_cnt() == 0 || to.At(2) % from.At(2) != 0 || to.At(3) % from.At(3) != 0) return false;
    if (!ctx.Attr<std::vector<int64_t>>("output_size").empty()) return true;
    return ctx.Attr<double>("height_scale") == static_cast<double>(to.At(2) / from.At(2))
           && ctx.Attr<double>("width_scale") == static_cast<double>(to.At(3) / from.At(3));
  });
}

// Empty tensors are included: OneFlow keeps the first kernel that it selected for an op, and its own gradient kernel
// would interpret our indices differently.
GT_CPU_KERNEL("max_pool_2d", MaxPoolKernel, GT_IS_FLOAT("x"));
GT_CPU_KERNEL("max_pool_2d_grad", MaxPoolGradKernel, GT_IS_FLOAT("dx"));
GT_CPU_KERNEL("upsample_nearest_2d", UpsampleKernel<channels_first>, GT_IS_FLOAT("y") && has_integer_factors("x", "y"));
GT_CPU_KERNEL("upsample_nearest_2d_grad", UpsampleGradKernel<channels_first>,
              GT_IS_FLOAT("dx") && has_integer_factors("dx", "dy"));

using UpsampleBfloat16 = UpsampleKernel<channels_last, Bfloat16>;
using UpsampleGradBfloat16 = UpsampleGradKernel<channels_last, Bfloat16>;
GT_CPU_KERNEL("graph_train_upsample", UpsampleKernel<channels_last>, GT_IS_FLOAT("in"));
GT_CPU_KERNEL("graph_train_upsample", UpsampleBfloat16, GT_IS_BFLOAT16("in"));
GT_CPU_KERNEL("graph_train_upsample_grad", UpsampleGradKernel<channels_last>, GT_IS_FLOAT("in"));
GT_CPU_KERNEL("graph_train_upsample_grad", UpsampleGradBfloat16, GT_IS_BFLOAT16("in"));

}  // namespace

}  // namespace graph_train
