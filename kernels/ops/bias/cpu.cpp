// graph_train_add_bias and its gradient on the CPU.
#include <vector>

#include "native/attributes.h"
#include "native/number_types.h"
#include "native/vector_kernels.h"
#include "ops/bias/bias.h"

namespace graph_train {

namespace {

constexpr int64_t kElementsPerThread = 1 << 14;

int64_t rows_per_thread(int64_t channels) { return 1 + kElementsPerThread / std::max<int64_t>(1, channels); }

GT_VECTOR void add_rows(const float* x, const float* bias, float* out, int64_t rows, int64_t channels) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) out[row * channels + c] = x[row * channels + c] + bias[c];
  }
}

void widen(const float* x, float* out, int64_t count) { std::copy(x, x + count, out); }
void widen(const Bfloat16* x, float* out, int64_t count) { vector_kernels().widen(x, out, count); }
void narrow(const float* x, float* out, int64_t count) { std::copy(x, x + count, out); }
void narrow(const float* x, Bfloat16* out, int64_t count) { vector_kernels().round(x, out, count); }

// A few rows at a time stay in the cache as float numbers.
constexpr int64_t kRowsAtATime = 16;

template<typename In, typename Out>
class AddBiasKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const int64_t channels = view_of(ctx, "x").At(3), rows = view_of(ctx, "x").Count(0, 3);
    const In* x = data_of<In>(ctx, "x");
    const float* bias = data_of(ctx, "bias");
    Out* out = result_of<Out>(ctx);
    const bool silu = integers_of(ctx).at(1) != 0;
    parallel_for(rows, rows_per_thread(channels), [&](int64_t begin, int64_t end) {
      std::vector<float> sums(kRowsAtATime * channels);
      for (int64_t row = begin; row < end; row += kRowsAtATime) {
        const int64_t count = std::min(kRowsAtATime, end - row);
        widen(x + row * channels, sums.data(), count * channels);
        add_rows(sums.data(), bias, sums.data(), count, channels);
        if (silu) vector_kernels().silu(sums.data(), sums.data(), count * channels);
        narrow(sums.data(), out + row * channels, count * channels);
      }
    });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// Sums of each thread's rows, in float64, are added in order.
template<typename Out>
class AddBiasGradKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const int64_t channels = view_of(ctx, "dy").At(3), rows = view_of(ctx, "dy").Count(0, 3);
    const float* dy = data_of(ctx, "dy");
    Out* dx = result_of<Out>(ctx);
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(num_threads(), rows / rows_per_thread(channels)));
    std::vector<std::vector<double>> sums(parts, std::vector<double>(channels));
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
        for (int64_t row = first; row < last; ++row) {
          for (int64_t c = 0; c < channels; ++c) sums[part][c] += dy[row * channels + c];
        }
        narrow(dy + first * channels, dx + first * channels, (last - first) * channels);
      }
    });
    float* d_bias = result_of(ctx, "out", 1);
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (const auto& of_part : sums) sum += of_part[c];
      d_bias[c] = static_cast<float>(sum);
    }
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

using RoundedSum = AddBiasKernel<Bfloat16, Bfloat16>;
using WideSum = AddBiasKernel<Bfloat16, float>;
using FloatSum = AddBiasKernel<float, float>;
GT_CPU_KERNEL("graph_train_add_bias", FloatSum, GT_IS_FLOAT("x"));
GT_CPU_KERNEL("graph_train_add_bias", RoundedSum, GT_IS_BFLOAT16("x") && GT_IS_BFLOAT16("out"));
GT_CPU_KERNEL("graph_train_add_bias", WideSum, GT_IS_BFLOAT16("x") && GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_add_bias_grad", AddBiasGradKernel<float>, GT_IS_FLOAT("dy") && GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_add_bias_grad", AddBiasGradKernel<Bfloat16>, GT_IS_FLOAT("dy") && GT_IS_BFLOAT16("out"));

}  // namespace

}  // namespace graph_train
