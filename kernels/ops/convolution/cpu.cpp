// Our convolution ops on oneDNN.
#include <type_traits>

#include "native/attributes.h"
#include "native/number_types.h"
#include "ops/convolution/geometry.h"

namespace graph_train {

namespace {

template<typename T>
ConvolutionShape shape_of(user_op::KernelComputeContext* ctx) {
  ConvolutionShape shape = graph_train::shape_of(integers_of(ctx), view_of(ctx, "x"), view_of(ctx, "weight"));
  shape.bfloat16_activations = std::is_same_v<T, Bfloat16>;
  return shape;
}

template<typename T = float>
T* without_const(const T* data) {
  return const_cast<T*>(data);
}

template<typename T>
class ConvolutionKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    convolve(ConvolutionPass::kForward, shape_of<T>(ctx), without_const(data_of<T>(ctx, "x")),
             without_const(data_of(ctx, "weight")), result_of<T>(ctx));
  }
};

template<typename T>
class DataGradientKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    convolve(ConvolutionPass::kDataGradient, shape_of<T>(ctx), result_of<T>(ctx), without_const(data_of(ctx, "weight")),
             without_const(data_of<T>(ctx, "dy")));
  }
};

template<typename T>
class FilterGradientKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    convolve(ConvolutionPass::kFilterGradient, shape_of<T>(ctx), without_const(data_of<T>(ctx, "x")), result_of(ctx),
             without_const(data_of<T>(ctx, "dy")));
  }
};

// On the emulated device, packed weights are left to the CUDA kernels: OneFlow keeps the first kernel that it selected
// for an op, regardless of priorities.
auto is_for_cpu() {
  return oneflow::hob::make_custom("weights for the CPU", [](const user_op::KernelRegContext& ctx) {
#ifdef GT_EMULATED_CUDA
    return integers_of(&ctx).at(kPacked) == 0;
#else
    return true;
#endif
  });
}

GT_CPU_ACTIVATION_KERNEL("graph_train_convolution", ConvolutionKernel, GT_IS_FLOAT("weight") && is_for_cpu());
GT_CPU_ACTIVATION_KERNEL("graph_train_convolution_data_grad", DataGradientKernel,
                         GT_IS_FLOAT("weight") && is_for_cpu());
GT_CPU_ACTIVATION_KERNEL("graph_train_convolution_filter_grad", FilterGradientKernel,
                         GT_IS_FLOAT("weight") && is_for_cpu());

}  // namespace

}  // namespace graph_train
