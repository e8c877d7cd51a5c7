// Own ops for networks that keep their activations as (B, H, W, C): convolution with ordinary (O, I, KH, KW) weights, and
// BatchNorm taken apart into statistics and normalisation with SiLU, so that nothing between two convolutions is stored twice.
//
// Activations are float or Bfloat16, all else is float. Statistics are (2, C): mean and 1 / deviation. Sums are (2, C):
// gradients of beta and gamma.
#include <type_traits>
#include <vector>

#include "attributes.h"
#include "bfloat16.h"
#include "common.h"
#include "convolution.h"
#include "normalisation.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

// FLOATS of the convolutions: stride, padding, dilation (rows, columns each), groups.
enum ConvolutionFloat { kStrideRows, kStrideColumns, kPadRows, kPadColumns, kDilationRows, kDilationColumns, kGroups };

int64_t integer(const std::vector<float>& floats, int at) { return static_cast<int64_t>(floats.at(at)); }

template<typename Dimensions>
ConvolutionShape shape_of(const std::vector<float>& floats, const Dimensions& x, const Dimensions& weight, bool bfloat16) {
  ConvolutionShape s;
  s.batch = x.At(0);
  s.in_height = x.At(1);
  s.in_width = x.At(2);
  s.in_channels = x.At(3);
  s.out_channels = weight.At(0);
  s.kernel_height = weight.At(2);
  s.kernel_width = weight.At(3);
  s.stride_height = integer(floats, kStrideRows);
  s.stride_width = integer(floats, kStrideColumns);
  s.pad_top = integer(floats, kPadRows);
  s.pad_left = integer(floats, kPadColumns);
  s.dilation_height = integer(floats, kDilationRows);
  s.dilation_width = integer(floats, kDilationColumns);
  s.groups = integer(floats, kGroups);
  s.out_height = (s.in_height + 2 * s.pad_top - s.dilation_height * (s.kernel_height - 1) - 1) / s.stride_height + 1;
  s.out_width = (s.in_width + 2 * s.pad_left - s.dilation_width * (s.kernel_width - 1) - 1) / s.stride_width + 1;
  s.channels_last = 1;
  s.weights_channels_last = 0;
  s.bfloat16_activations = bfloat16;
  return s;
}

template<typename Context>
const std::vector<float>& floats_of(const Context* ctx) {
  return ctx->template Attr<std::vector<float>>(kFloats);
}

template<typename T = float>
T* data_of(user_op::KernelComputeContext* ctx, const char* name) {
  return const_cast<T*>(static_cast<const T*>(ctx->Tensor4ArgNameAndIndex(name, 0)->dptr<void>()));
}

ShapeView view_of(user_op::KernelComputeContext* ctx, const char* name) {
  return ctx->Tensor4ArgNameAndIndex(name, 0)->shape_view();
}

template<typename T = float>
T* result_of(user_op::KernelComputeContext* ctx) {
  return static_cast<T*>(ctx->Tensor4ArgNameAndIndex("out", 0)->mut_dptr<void>());
}

template<typename T>
ConvolutionShape shape_of(user_op::KernelComputeContext* ctx) {
  return shape_of(floats_of(ctx), view_of(ctx, "x"), view_of(ctx, "weight"), std::is_same_v<T, Bfloat16>);
}

template<typename T>
class ConvolutionKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    convolve(ConvolutionPass::kForward, shape_of<T>(ctx), data_of<T>(ctx, "x"), data_of(ctx, "weight"), result_of<T>(ctx));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

template<typename T>
class DataGradientKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    convolve(ConvolutionPass::kDataGradient, shape_of<T>(ctx), result_of<T>(ctx), data_of(ctx, "weight"),
             data_of<T>(ctx, "dy"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

template<typename T>
class FilterGradientKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    convolve(ConvolutionPass::kFilterGradient, shape_of<T>(ctx), data_of<T>(ctx, "x"), result_of(ctx),
             data_of<T>(ctx, "dy"));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

NormalisedShape rows_of(const ShapeView& x) { return {x.Count(0, 3), x.At(3), 1, true}; }

// FLOATS: epsilon, momentum (share of the new value); the first integer: 1 in training.
template<typename T>
class StatisticsKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const float epsilon = floats_of(ctx).at(0);
    float* mean = result_of(ctx);
    float* moving_mean = data_of(ctx, "moving_mean");
    float* moving_variance = data_of(ctx, "moving_variance");
    std::vector<float> variance(shape.channels);
    if (ctx->Attr<int64_t>(kFirstInteger) != 0) {
      batch_moments(shape, data_of<T>(ctx, "x"), mean, variance.data());
      update_moving(shape, mean, variance.data(), 1.0f - floats_of(ctx).at(1), moving_mean, moving_variance);
    } else {
      std::copy(moving_mean, moving_mean + shape.channels, mean);
      std::copy(moving_variance, moving_variance + shape.channels, variance.begin());
    }
    inverse_deviation(variance.data(), epsilon, shape.channels, mean + shape.channels);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

bool with_silu(const user_op::KernelComputeContext* ctx) { return ctx->Attr<int64_t>(kFirstInteger) != 0; }

template<typename T>
class NormaliseKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const float* mean = data_of(ctx, "statistics");
    normalise(shape, data_of<T>(ctx, "x"), mean, mean + shape.channels, data_of(ctx, "gamma"), data_of(ctx, "beta"),
              with_silu(ctx), result_of<T>(ctx));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

template<typename T>
class NormaliseSumsKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const float* mean = data_of(ctx, "statistics");
    float* sums = result_of(ctx);
    normalisation_sums(shape, data_of<T>(ctx, "x"), data_of<T>(ctx, "dy"), mean, mean + shape.channels,
                       data_of(ctx, "gamma"), data_of(ctx, "beta"), with_silu(ctx), sums, sums + shape.channels);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// The second integer: 1 when the statistics came from this batch and therefore depend on x.
template<typename T>
class NormaliseGradientKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const NormalisedShape shape = rows_of(view_of(ctx, "x"));
    const float* mean = data_of(ctx, "statistics");
    const float* sums = data_of(ctx, "sums");
    const std::vector<float> zeros(ctx->Attr<int64_t>(kSecondInteger) != 0 ? 0 : 2 * shape.channels);
    if (!zeros.empty()) sums = zeros.data();
    normalisation_gradient(shape, data_of<T>(ctx, "x"), data_of<T>(ctx, "dy"), mean, mean + shape.channels,
                           data_of(ctx, "gamma"), data_of(ctx, "beta"), sums, sums + shape.channels, with_silu(ctx),
                           result_of<T>(ctx));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// The two rows of `in`, (2, C). One op in place of two slices and two reshapes: every op of a graph costs time and memory.
// `like` is not read: the only dispatcher of an op with several outputs (kernels.dispatch.call_pair) takes two tensors.
class HalvesKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const int64_t channels = view_of(ctx, "in").At(1);
    for (int row = 0; row < 2; ++row) {
      const float* values = data_of(ctx, "in") + row * channels;
      std::copy(values, values + channels, ctx->Tensor4ArgNameAndIndex("out", row)->mut_dptr<float>());
    }
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

Maybe<void> infer_convolution(user_op::InferContext* ctx) {
  const ConvolutionShape s = shape_of(floats_of(ctx), ctx->InputShape("x", 0), ctx->InputShape("weight", 0), false);
  ctx->SetOutputShape("out", 0, Shape({s.batch, s.out_height, s.out_width, s.out_channels}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_like_x(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->InputShape("x", 0));
  return Maybe<void>::Ok();
}

Maybe<void> infer_like_weight(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->InputShape("weight", 0));
  return Maybe<void>::Ok();
}

Maybe<void> infer_pair_of_channels(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, Shape({2, ctx->InputShape("x", 0).At(3)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_rows(user_op::InferContext* ctx) {
  const Shape& in = ctx->InputShape("in", 0);
  CHECK_OR_RETURN(in.NumAxes() == 2 && in.At(0) == 2);
  for (int row = 0; row < 2; ++row) ctx->SetOutputShape("out", row, Shape({in.At(1)}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_floats(user_op::InferContext* ctx) {
  for (int row = 0; row < 2; ++row) ctx->SetOutputDType("out", row, oneflow::DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> infer_activation(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, ctx->InputDType("x", 0));
  return Maybe<void>::Ok();
}

Maybe<void> infer_float(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, oneflow::DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> mutable_moving(const user_op::GetInputArgModifier& modifier_of, const user_op::UserOpConfWrapper&) {
  for (const char* name : {"moving_mean", "moving_variance"}) modifier_of(name, 0)->set_is_mutable(true);
  return Maybe<void>::Ok();
}

// Data parallelism: images are split, all that belongs to channels is whole everywhere, sums over images are partial.
// Statistics are each rank's own, as in OneFlow's BatchNorm.
bool is_activation(const std::string& name) { return name == "x" || name == "dy"; }

template<bool kImagesOut, bool kSumOut>
Maybe<void> split_images(user_op::SbpContext* ctx) {
  auto builder = ctx->NewBuilder();
  for (const auto& input : ctx->inputs()) {
    const user_op::OpArg arg{std::string(input.first), input.second};
    if (is_activation(input.first)) {
      builder.Split(arg, 0);
    } else if (input.first == "sums") {
      builder.PartialSum(arg);
    } else {
      builder.Broadcast(arg);
    }
  }
  const user_op::OpArg out("out", 0);
  if (kImagesOut) {
    builder.Split(out, 0);
  } else if (kSumOut) {
    builder.PartialSum(out);
  } else {
    builder.Broadcast(out);
  }
  builder.Build();
  return Maybe<void>::Ok();
}

// Rows of a sum over images are sums over images.
Maybe<void> keep_sums(user_op::SbpContext* ctx) {
  ctx->NewBuilder()
      .PartialSum(user_op::OpArg("in", 0))
      .Broadcast(user_op::OpArg("like", 0))
      .PartialSum(ctx->outputs())
      .Build();
  return Maybe<void>::Ok();
}

// Those that give images give activations, others sums or statistics.
#define GT_CHANNELS_LAST_OP(infer, images_out, sum_out)              \
  Output("out")                                                      \
      .GT_CALL_ATTRIBUTES()                                          \
      .SetLogicalTensorDescInferFn(infer)                            \
      .SetPhysicalTensorDescInferFn(infer)                           \
      .SetGetSbpFn(split_images<images_out, sum_out>)                \
      .SetDataTypeInferFn(images_out ? infer_activation : infer_float)

REGISTER_NO_GRAD_USER_OP("graph_train_convolution").Input("x").Input("weight").GT_CHANNELS_LAST_OP(infer_convolution, true, false);
REGISTER_NO_GRAD_USER_OP("graph_train_convolution_data_grad")
    .Input("dy")
    .Input("weight")
    .Input("x")
    .GT_CHANNELS_LAST_OP(infer_like_x, true, false);
REGISTER_NO_GRAD_USER_OP("graph_train_convolution_filter_grad")
    .Input("dy")
    .Input("x")
    .Input("weight")
    .GT_CHANNELS_LAST_OP(infer_like_weight, false, true);
REGISTER_NO_GRAD_USER_OP("graph_train_statistics")
    .Input("x")
    .Input("moving_mean")
    .Input("moving_variance")
    .GT_CHANNELS_LAST_OP(infer_pair_of_channels, false, false)
    .SetInputArgModifyFn(mutable_moving);
REGISTER_NO_GRAD_USER_OP("graph_train_normalise")
    .Input("x")
    .Input("statistics")
    .Input("gamma")
    .Input("beta")
    .GT_CHANNELS_LAST_OP(infer_like_x, true, false);
REGISTER_NO_GRAD_USER_OP("graph_train_normalise_sums")
    .Input("dy")
    .Input("x")
    .Input("statistics")
    .Input("gamma")
    .Input("beta")
    .GT_CHANNELS_LAST_OP(infer_pair_of_channels, false, true);
REGISTER_NO_GRAD_USER_OP("graph_train_normalise_grad")
    .Input("dy")
    .Input("x")
    .Input("statistics")
    .Input("gamma")
    .Input("beta")
    .Input("sums")
    .GT_CHANNELS_LAST_OP(infer_like_x, true, false);

REGISTER_NO_GRAD_USER_OP("graph_train_halves")
    .Input("in")
    .Input("like")
    .Output("out")
    .Attr<int64_t>("num_sample", 0)
    .SetLogicalTensorDescInferFn(infer_rows)
    .SetPhysicalTensorDescInferFn(infer_rows)
    .SetGetSbpFn(keep_sums)
    .SetDataTypeInferFn(infer_floats);

#define GT_CPU_ACTIVATION_KERNEL(op, kernel)                 \
  GT_CPU_KERNEL(op, kernel<float>, GT_IS_FLOAT("x"));    \
  GT_CPU_KERNEL(op, kernel<Bfloat16>, GT_IS_BFLOAT16("x"))

GT_CPU_ACTIVATION_KERNEL("graph_train_convolution", ConvolutionKernel);
GT_CPU_ACTIVATION_KERNEL("graph_train_convolution_data_grad", DataGradientKernel);
GT_CPU_ACTIVATION_KERNEL("graph_train_convolution_filter_grad", FilterGradientKernel);
GT_CPU_ACTIVATION_KERNEL("graph_train_statistics", StatisticsKernel);
GT_CPU_ACTIVATION_KERNEL("graph_train_normalise", NormaliseKernel);
GT_CPU_ACTIVATION_KERNEL("graph_train_normalise_sums", NormaliseSumsKernel);
GT_CPU_ACTIVATION_KERNEL("graph_train_normalise_grad", NormaliseGradientKernel);
GT_CPU_KERNEL("graph_train_halves", HalvesKernel, GT_IS_FLOAT("in"));

}  // namespace

}  // namespace graph_train
