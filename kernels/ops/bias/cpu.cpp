// OneFlow's op bias_add, which follows a convolution or a linear layer with a bias; OneFlow's kernel is not vectorised.
#include "native/attributes.h"

namespace graph_train {

namespace {

constexpr int64_t kElementsPerThread = 1 << 14;

GT_VECTOR void add_constant(const float* in, float value, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = in[i] + value;
}

GT_VECTOR void add_vector(const float* in, const float* bias, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = in[i] + bias[i];
}

using namespace oneflow;  // the macro below needs the names

Maybe<void> write_over_input(const user_op::InferContext&, const user_op::AddInplaceArgPair& add_pair) {
  OF_RETURN_IF_ERROR(add_pair("out", 0, "a", 0, true));
  return Maybe<void>::Ok();
}

class BiasAddKernel final : public StatelessKernel {
  // in (outer, channels, inner) + bias (channels).
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& shape = view_of(ctx, "a");
    const int64_t channels = view_of(ctx, "b").elem_cnt();
    const int64_t inner = shape.Count(ctx->Attr<int32_t>("axis") + 1);
    const int64_t elements = shape.elem_cnt();
    const float* source = data_of(ctx, "a");
    const float* values = data_of(ctx, "b");
    float* target = result_of(ctx);
    if (inner == 1) {
      parallel_for(elements / channels, 1 + kElementsPerThread / channels, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          add_vector(source + row * channels, values, target + row * channels, channels);
        }
      });
      return;
    }
    parallel_for(elements / inner, 1 + kElementsPerThread / inner, [=](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        add_constant(source + plane * inner, values[plane % channels], target + plane * inner, inner);
      }
    });
  }
};

GT_CPU_KERNEL("bias_add", BiasAddKernel, GT_IS_FLOAT("out")).SetInplaceProposalFn(write_over_input);

}  // namespace

}  // namespace graph_train
