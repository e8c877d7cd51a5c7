// Our bias op and its gradient on the CPU; stock bias_add is in cpu.cpp.
#include <vector>

#include "native/attributes.h"
#include "native/number_types.h"
#include "native/vector_kernels.h"

namespace graph_train {

namespace {

constexpr int64_t kElementsPerThread = 1 << 14;

template<typename T>
GT_INLINE void add_row_of(const T* x, const float* bias, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(x[i]) + bias[i];
}
GT_VECTOR void add_row(const float* x, const float* bias, float* out, int64_t n) { add_row_of(x, bias, out, n); }
GT_VECTOR void add_row(const Bfloat16* x, const float* bias, float* out, int64_t n) { add_row_of(x, bias, out, n); }

int64_t rows_of_thread(int64_t channels) { return 1 + kElementsPerThread / channels; }

template<typename From, typename To>
class AddBiasKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& shape = view_of(ctx, "x");
    const int64_t channels = shape.At(3);
    const bool silu = integers_of(ctx).at(1) != 0;
    const From* x = data_of<From>(ctx, "x");
    const float* bias = data_of(ctx, "bias");
    To* out = result_of<To>(ctx);
    parallel_for(shape.Count(0, 3), rows_of_thread(channels), [&](int64_t begin, int64_t end) {
      std::vector<float> row(std::is_same_v<To, float> ? 0 : channels);
      for (int64_t at = begin * channels; at < end * channels; at += channels) {
        float* sums = row.data();
        if constexpr (std::is_same_v<To, float>) sums = out + at;
        add_row(x + at, bias, sums, channels);
        if (silu) vector_kernels().silu(sums, sums, channels);
        if constexpr (!std::is_same_v<To, float>) vector_kernels().round(sums, out + at, channels);
      }
    });
  }
};

template<typename From, typename To>
void convert(const From* x, To* y, int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    std::copy(x, x + n, y);
  } else {
    vector_kernels().round(x, y, n);
  }
}

template<typename From, typename To>
class AddBiasGradKernel final : public StatelessKernel {
  // The sums of all threads are added in the order of their rows.
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& shape = view_of(ctx, "dy");
    const int64_t rows = shape.Count(0, 3), channels = shape.At(3);
    const From* dy = data_of<From>(ctx, "dy");
    To* dx = result_of<To>(ctx, "out", 0);
    float* d_bias = result_of(ctx, "out", 1);
    const int64_t parts = std::min<int64_t>(num_threads(), 1 + rows / rows_of_thread(channels));
    const std::vector<float> zeros(channels);
    std::vector<double> sums(parts * channels), squares(parts * channels);
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = rows * part / parts, count = rows * (part + 1) / parts - first;
        vector_kernels().rows<From>().moments(dy + first * channels, count, channels, zeros.data(),
                                              sums.data() + part * channels, squares.data() + part * channels);
        convert(dy + first * channels, dx + first * channels, count * channels);
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[part * channels + c];
      d_bias[c] = static_cast<float>(sum);
    }
  }
};

using AddBiasFloat = AddBiasKernel<float, float>;
using AddBiasBfloat16 = AddBiasKernel<Bfloat16, Bfloat16>;
using AddBiasToFloat = AddBiasKernel<Bfloat16, float>;
using AddBiasGradFloat = AddBiasGradKernel<float, float>;
using AddBiasGradBfloat16 = AddBiasGradKernel<Bfloat16, Bfloat16>;
using AddBiasGradOfFloat = AddBiasGradKernel<float, Bfloat16>;
GT_CPU_KERNEL("graph_train_add_bias", AddBiasFloat, GT_IS_FLOAT("x"));
GT_CPU_KERNEL("graph_train_add_bias", AddBiasBfloat16, GT_IS_BFLOAT16("x") && GT_IS_BFLOAT16("out"));
GT_CPU_KERNEL("graph_train_add_bias", AddBiasToFloat, GT_IS_BFLOAT16("x") && GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_add_bias_grad", AddBiasGradFloat, GT_IS_FLOAT("dy") && GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_add_bias_grad", AddBiasGradBfloat16, GT_IS_BFLOAT16("dy") && GT_IS_BFLOAT16("out"));
GT_CPU_KERNEL("graph_train_add_bias_grad", AddBiasGradOfFloat, GT_IS_FLOAT("dy") && GT_IS_BFLOAT16("out"));

}  // namespace

}  // namespace graph_train
