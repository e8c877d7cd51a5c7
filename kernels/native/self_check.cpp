// A minimal op, and functions about threads, for tests.
#include "native/op.h"

namespace graph_train {

namespace {

GT_VECTOR void double_range(const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = 2 * in[i];
}

class DoubleKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* in = ctx->Tensor4ArgNameAndIndex("in", 0);
    auto* out = ctx->Tensor4ArgNameAndIndex("out", 0);
    const float* source = in->dptr<float>();
    float* target = out->mut_dptr<float>();
    parallel_for(in->shape_view().elem_cnt(), 1 << 15,
                 [=](int64_t begin, int64_t end) { double_range(source + begin, target + begin, end - begin); });
  }
};

const Op double_op("graph_train_double", {"in"}, like<kShape>("in"), user_op::GetSbpFnUtil::SplitForEachAxis,
                   like<kType>("in"));

GT_CPU_KERNEL("graph_train_double", DoubleKernel, GT_IS_FLOAT("in"));

}  // namespace

extern "C" GT_EXPORT int graph_train_threads() { return num_threads(); }
extern "C" GT_EXPORT void graph_train_leave_core(int core) { leave_core(core); }

}  // namespace graph_train
