// A minimal op, and functions that show the behaviour of threads, for tests.
#include "native/attributes.h"

namespace graph_train {

namespace {

GT_VECTOR void double_range(const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = 2 * in[i];
}

class DoubleKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* in = ctx->Tensor4ArgNameAndIndex("in", 0);
    auto* out = ctx->Tensor4ArgNameAndIndex("out", 0);
    const float* source = in->dptr<float>();
    float* target = out->mut_dptr<float>();
    parallel_for(in->shape_view().elem_cnt(), 1 << 15,
                 [=](int64_t begin, int64_t end) { double_range(source + begin, target + begin, end - begin); });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

oneflow::Maybe<void> infer_same_shape(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->InputShape("in", 0));
  ctx->SetOutputIsDynamic("out", 0, ctx->InputIsDynamic("in", 0));
  return oneflow::Maybe<void>::Ok();
}

REGISTER_NO_GRAD_USER_OP("graph_train_double")
    .Input("in")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_same_shape)
    .SetPhysicalTensorDescInferFn(infer_same_shape)
    .SetGetSbpFn(user_op::GetSbpFnUtil::SplitForEachAxis)
    .SetDataTypeInferFn([](user_op::InferContext* ctx) -> oneflow::Maybe<void> {
      ctx->SetOutputDType("out", 0, ctx->InputDType("in", 0));
      return oneflow::Maybe<void>::Ok();
    });

GT_CPU_KERNEL("graph_train_double", DoubleKernel, GT_IS_FLOAT("in"));

}  // namespace

extern "C" GT_EXPORT int graph_train_threads() { return num_threads(); }
extern "C" GT_EXPORT void graph_train_leave_core(int core) { leave_core(core); }

}  // namespace graph_train
