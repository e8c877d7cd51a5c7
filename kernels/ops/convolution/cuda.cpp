// Our convolution ops on CUDA: cuDNN, with packed weights, (O, KH, KW, I / groups) in the type of the activations.
#include "native/attributes.h"
#include "ops/convolution/cudnn_plan.h"
#include "ops/convolution/geometry.h"

namespace graph_train {

namespace {

cudnn::DataType cudnn_type(oneflow::DataType type) {
  switch (type) {
    case oneflow::DataType::kBFloat16: return cudnn::DataType::kBfloat16;
    case oneflow::DataType::kFloat16: return cudnn::DataType::kHalf;
    default: return cudnn::DataType::kFloat;
  }
}

void* without_const(const void* data) { return const_cast<void*>(data); }

void run(user_op::KernelComputeContext* ctx, ConvolutionPass pass, void* x, void* weights, void* y) {
  const ConvolutionShape shape = shape_of(integers_of(ctx), view_of(ctx, "x"), view_of(ctx, "weight"));
  if (shape.batch == 0) return;
  convolve_with_cudnn(cuda::queue_of(ctx), cudnn::handle_of(ctx), pass, shape, cudnn_type(type_of(ctx, "x")), x,
                      weights, y);
}

class ConvolutionCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    run(ctx, ConvolutionPass::kForward, without_const(data_of<void>(ctx, "x")),
        without_const(data_of<void>(ctx, "weight")), result_of<void>(ctx));
  }
};

class DataGradientCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    run(ctx, ConvolutionPass::kDataGradient, result_of<void>(ctx), without_const(data_of<void>(ctx, "weight")),
        without_const(data_of<void>(ctx, "dy")));
  }
};

class FilterGradientCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    if (view_of(ctx, "x").At(0) == 0) {  // an empty sum
      const auto bytes = view_of(ctx, "out").elem_cnt() * oneflow::GetSizeOfDataType(type_of(ctx, "out"));
      return cuda::set_zero(cuda::queue_of(ctx), result_of<void>(ctx), bytes);
    }
    run(ctx, ConvolutionPass::kFilterGradient, without_const(data_of<void>(ctx, "x")), result_of<void>(ctx),
        without_const(data_of<void>(ctx, "dy")));
  }
};

// Packed weights of the type of the activations.
auto is_packed() {
  return oneflow::hob::make_custom("packed weights", [](const user_op::KernelRegContext& ctx) {
    const auto* x = ctx.TensorDesc4ArgNameAndIndex("x", 0);
    const auto* weight = ctx.TensorDesc4ArgNameAndIndex("weight", 0);
    return integers_of(&ctx).at(kPacked) != 0 && x->data_type() == weight->data_type();
  });
}

GT_CUDA_KERNEL("graph_train_convolution", ConvolutionCudaKernel, GT_IS_ACTIVATION("x") && is_packed());
GT_CUDA_KERNEL("graph_train_convolution_data_grad", DataGradientCudaKernel, GT_IS_ACTIVATION("x") && is_packed());
GT_CUDA_KERNEL("graph_train_convolution_filter_grad", FilterGradientCudaKernel, GT_IS_ACTIVATION("x") && is_packed());

}  // namespace

}  // namespace graph_train
