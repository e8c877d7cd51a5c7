// OneFlow's ops conv2d, conv_data_grad and conv_filter_grad on oneDNN; float, with groups and dilation.
#include <vector>

#include "native/common.h"
#include "native/stock_ops.h"
#include "ops/convolution/convolution.h"

namespace graph_train {

namespace {

using oneflow::ShapeView;
using oneflow::user_op::HobAttr;

ConvolutionShape shape_of(const user_op::KernelComputeContext* ctx, const ShapeView& x, const ShapeView& weights,
                          const ShapeView& y) {
  const bool last = is_channels_last(ctx);
  const auto& kernel = ctx->Attr<std::vector<int32_t>>("kernel_size");
  const auto& strides = ctx->Attr<std::vector<int32_t>>("strides");
  const auto& padding = ctx->Attr<std::vector<int32_t>>("padding_before");
  const auto& dilation = ctx->Attr<std::vector<int32_t>>("dilation_rate");
  const int channel = last ? 3 : 1;
  const int height = last ? 1 : 2;
  ConvolutionShape s;
  s.batch = x.At(0);
  s.in_channels = x.At(channel);
  s.in_height = x.At(height);
  s.in_width = x.At(height + 1);
  s.out_channels = weights.At(0);
  s.out_height = y.At(height);
  s.out_width = y.At(height + 1);
  s.kernel_height = kernel[0];
  s.kernel_width = kernel[1];
  s.stride_height = strides[0];
  s.stride_width = strides[1];
  s.pad_top = padding[0];
  s.pad_left = padding[1];
  s.dilation_height = dilation[0];
  s.dilation_width = dilation[1];
  s.groups = ctx->Attr<int32_t>("groups");
  s.channels_last = last;
  s.weights_channels_last = last;
  s.bfloat16_activations = 0;
  return s;
}

GT_VECTOR void add_constant(float* target, float value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] += value;
}

void add_bias(const float* bias, float* out, const ConvolutionShape& s) {
  const int64_t area = s.out_height * s.out_width;
  if (s.channels_last) {
    parallel_for(s.batch * area, 64, [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) add_to(out + row * s.out_channels, bias, s.out_channels);
    });
    return;
  }
  parallel_for(s.batch * s.out_channels, 4, [=](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane)
      add_constant(out + plane * area, bias[plane % s.out_channels], area);
  });
}

class ConvKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* in = ctx->Tensor4ArgNameAndIndex("in", 0);
    const auto* weight = ctx->Tensor4ArgNameAndIndex("weight", 0);
    const auto* bias = ctx->Tensor4ArgNameAndIndex("bias", 0);
    auto* out = ctx->Tensor4ArgNameAndIndex("out", 0);
    const ConvolutionShape shape = shape_of(ctx, in->shape_view(), weight->shape_view(), out->shape_view());
    convolve(ConvolutionPass::kForward, shape, const_cast<float*>(in->dptr<float>()),
             const_cast<float*>(weight->dptr<float>()), out->mut_dptr<float>());
    if (bias != nullptr) add_bias(bias->dptr<float>(), out->mut_dptr<float>(), shape);
  }
};

class ConvDataGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* dy = ctx->Tensor4ArgNameAndIndex("dy", 0);
    const auto* filter = ctx->Tensor4ArgNameAndIndex("filter", 0);
    auto* dx = ctx->Tensor4ArgNameAndIndex("dx", 0);
    const ConvolutionShape shape = shape_of(ctx, dx->shape_view(), filter->shape_view(), dy->shape_view());
    convolve(ConvolutionPass::kDataGradient, shape, dx->mut_dptr<float>(), const_cast<float*>(filter->dptr<float>()),
             const_cast<float*>(dy->dptr<float>()));
  }
};

class ConvFilterGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* dy = ctx->Tensor4ArgNameAndIndex("dy", 0);
    const auto* x = ctx->Tensor4ArgNameAndIndex("x", 0);
    auto* filter_diff = ctx->Tensor4ArgNameAndIndex("filter_diff", 0);
    const ConvolutionShape shape = shape_of(ctx, x->shape_view(), filter_diff->shape_view(), dy->shape_view());
    convolve(ConvolutionPass::kFilterGradient, shape, const_cast<float*>(x->dptr<float>()),
             filter_diff->mut_dptr<float>(), const_cast<float*>(dy->dptr<float>()));
  }
};

GT_CPU_KERNEL("conv2d", ConvKernel, GT_IS_FLOAT("in"));
GT_CPU_KERNEL("conv_data_grad", ConvDataGradKernel, GT_IS_FLOAT("dy") && HobAttr<int32_t>("num_spatial_dims") == 2);
GT_CPU_KERNEL("conv_filter_grad", ConvFilterGradKernel, GT_IS_FLOAT("dy") && HobAttr<int32_t>("num_spatial_dims") == 2);

}  // namespace

}  // namespace graph_train
