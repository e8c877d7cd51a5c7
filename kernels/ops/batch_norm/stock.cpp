// OneFlow's ops normalization and normalization_grad, for float tensors with the channel axis second or last.
#include <vector>

#include "native/common.h"
#include "native/stock_ops.h"
#include "ops/batch_norm/normalisation.h"

namespace graph_train {

namespace {

using oneflow::user_op::HobAttr;

NormalisedShape shape_of(const oneflow::ShapeView& x, int64_t axis) {
  const int64_t axes = x.NumAxes();
  const int64_t before = axis == 0 ? 1 : x.Count(0, axis);
  const int64_t after = axis == axes - 1 ? 1 : x.Count(axis + 1);
  // A last channel axis with one pixel per image is both: rows of channels serve it best.
  if (axis == axes - 1) return {before, x.At(axis), 1, true};
  return {before, x.At(axis), after, false};
}

// A graph's compiler may fuse a following sum into an op, which then has this input.
void add_further_input(user_op::KernelComputeContext* ctx, user_op::Tensor* out) {
  const auto* further = ctx->Tensor4ArgNameAndIndex("_add_to_output", 0);
  if (further == nullptr) return;
  const float* source = further->dptr<float>();
  float* target = out->mut_dptr<float>();
  parallel_for(out->shape_view().elem_cnt(), 1 << 14,
               [=](int64_t begin, int64_t end) { add_to(target + begin, source + begin, end - begin); });
}

class InferenceKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* x = ctx->Tensor4ArgNameAndIndex("x", 0);
    const NormalisedShape shape = shape_of(x->shape_view(), ctx->Attr<int32_t>("axis"));
    auto* y = ctx->Tensor4ArgNameAndIndex("y", 0);
    std::vector<float> inverse(shape.channels);
    inverse_deviation(ctx->Tensor4ArgNameAndIndex("moving_variance", 0)->dptr<float>(), ctx->Attr<float>("epsilon"),
                      shape.channels, inverse.data());
    normalise(shape, x->dptr<float>(), ctx->Tensor4ArgNameAndIndex("moving_mean", 0)->dptr<float>(), inverse.data(),
              ctx->Tensor4ArgNameAndIndex("gamma", 0)->dptr<float>(),
              ctx->Tensor4ArgNameAndIndex("beta", 0)->dptr<float>(), /*silu=*/false, y->mut_dptr<float>());
    add_further_input(ctx, y);
  }
};

class TrainingKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* x = ctx->Tensor4ArgNameAndIndex("x", 0);
    const NormalisedShape shape = shape_of(x->shape_view(), ctx->Attr<int32_t>("axis"));
    auto* y = ctx->Tensor4ArgNameAndIndex("y", 0);
    float* mean = ctx->Tensor4ArgNameAndIndex("mean", 0)->mut_dptr<float>();
    float* inverse = ctx->Tensor4ArgNameAndIndex("inv_variance", 0)->mut_dptr<float>();
    std::vector<float> variance(shape.channels);
    batch_moments(shape, x->dptr<float>(), mean, variance.data());
    if (ctx->has_input("moving_mean", 0)) {
      update_moving(shape, mean, variance.data(), ctx->Attr<float>("momentum"),
                    ctx->Tensor4ArgNameAndIndex("moving_mean", 0)->mut_dptr<float>(),
                    ctx->Tensor4ArgNameAndIndex("moving_variance", 0)->mut_dptr<float>());
    }
    inverse_deviation(variance.data(), ctx->Attr<float>("epsilon"), shape.channels, inverse);
    normalise(shape, x->dptr<float>(), mean, inverse, ctx->Tensor4ArgNameAndIndex("gamma", 0)->dptr<float>(),
              ctx->Tensor4ArgNameAndIndex("beta", 0)->dptr<float>(), /*silu=*/false, y->mut_dptr<float>());
    add_further_input(ctx, y);
  }
};

class GradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* x = ctx->Tensor4ArgNameAndIndex("x", 0);
    const NormalisedShape shape = shape_of(x->shape_view(), ctx->Attr<int32_t>("axis"));
    const float* dy = ctx->Tensor4ArgNameAndIndex("dy", 0)->dptr<float>();
    const float* mean = ctx->Tensor4ArgNameAndIndex("mean", 0)->dptr<float>();
    const float* inverse = ctx->Tensor4ArgNameAndIndex("inv_variance", 0)->dptr<float>();
    const float* gamma = ctx->Tensor4ArgNameAndIndex("gamma", 0)->dptr<float>();
    float* gamma_diff = ctx->Tensor4ArgNameAndIndex("gamma_diff", 0)->mut_dptr<float>();
    float* beta_diff = ctx->Tensor4ArgNameAndIndex("beta_diff", 0)->mut_dptr<float>();
    const float* beta = gamma;  // not needed without SiLU
    normalisation_sums(shape, x->dptr<float>(), dy, mean, inverse, gamma, beta, /*silu=*/false,
                       static_cast<float*>(nullptr), beta_diff, gamma_diff);
    normalisation_gradient(shape, x->dptr<float>(), dy, mean, inverse, gamma, beta, beta_diff, gamma_diff,
                           shape.count(), /*silu=*/false, ctx->Tensor4ArgNameAndIndex("dx", 0)->mut_dptr<float>());
  }
};

GT_CPU_KERNEL("normalization", InferenceKernel, GT_IS_FLOAT("y") && HobAttr<bool>("training") == false);
GT_CPU_KERNEL("normalization", TrainingKernel, GT_IS_FLOAT("y") && HobAttr<bool>("training") == true);
GT_CPU_KERNEL("normalization_grad", GradKernel, GT_IS_FLOAT("dx"));

}  // namespace

}  // namespace graph_train
