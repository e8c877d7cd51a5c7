// Elementwise ops of OneFlow: silu, the gradients of silu and sigmoid (float), add_n (float, Bfloat16), and casts
// between the two types.
#include "native/attributes.h"
#include "native/vector_kernels.h"

namespace graph_train {

namespace {

// With fewer elements, waking a thread costs more than it saves.
constexpr int64_t kElementsPerThread = 1 << 14;

// Calls function(x, y, count) on ranges of the input and the output.
template<typename From, typename To>
void map_unary(void (*function)(const From*, To*, int64_t), int64_t count, const From* x, To* y) {
  parallel_for(count, kElementsPerThread,
               [=](int64_t begin, int64_t end) { function(x + begin, y + begin, end - begin); });
}

template<typename T>
void map_binary(void (*function)(const T*, const T*, T*, int64_t), int64_t count, const T* a, const T* b, T* y) {
  parallel_for(count, kElementsPerThread,
               [=](int64_t begin, int64_t end) { function(a + begin, b + begin, y + begin, end - begin); });
}

class SiluKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    map_unary(vector_kernels().silu, view_of(ctx, "in").elem_cnt(), data_of(ctx, "in"), result_of(ctx));
  }
};

class SiluGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    map_binary(vector_kernels().silu_grad, view_of(ctx, "x").elem_cnt(), data_of(ctx, "x"), data_of(ctx, "dy"),
               result_of(ctx, "dx"));
  }
};

class SigmoidGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    map_binary(vector_kernels().sigmoid_grad, view_of(ctx, "y").elem_cnt(), data_of(ctx, "y"), data_of(ctx, "dy"),
               result_of(ctx, "dx"));
  }
};

template<typename T>
class AddNKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const int64_t count = view_of(ctx, "out").elem_cnt();
    T* out = result_of<T>(ctx);
    for (int32_t i = 1; i < ctx->input_size("in"); ++i) {
      const T* sum = i == 1 ? data_of<T>(ctx, "in", 0) : out;
      map_binary(vector_kernels().rows<T>().add, count, sum, data_of<T>(ctx, "in", i), out);
    }
  }
};

template<typename From, typename To, void (*VectorKernels::*kConvert)(const From*, To*, int64_t)>
class CastKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    map_unary(vector_kernels().*kConvert, view_of(ctx, "in").elem_cnt(), data_of<From>(ctx, "in"), result_of<To>(ctx));
  }
};

using RoundKernel = CastKernel<float, Bfloat16, &VectorKernels::round>;
using WidenKernel = CastKernel<Bfloat16, float, &VectorKernels::widen>;

// "out" may be the memory of input 0, as OneFlow's own kernel proposes.
oneflow::Maybe<void> add_in_place(const user_op::InferContext&, const user_op::AddInplaceArgPair& add_pair) {
  return add_pair("out", 0, "in", 0, true);
}

auto has_several_inputs() {
  return oneflow::hob::make_custom("two or more inputs",
                                   [](const user_op::KernelRegContext& ctx) { return ctx.inputs().size() >= 2; });
}

GT_CPU_KERNEL("silu", SiluKernel, GT_IS_FLOAT("in") && GT_IS_FLOAT("out"));
GT_CPU_KERNEL("silu_grad", SiluGradKernel, GT_IS_FLOAT("dy") && GT_IS_FLOAT("dx"));
GT_CPU_KERNEL("sigmoid_grad", SigmoidGradKernel, GT_IS_FLOAT("dy") && GT_IS_FLOAT("dx"));
GT_CPU_KERNEL("add_n", AddNKernel<float>, GT_IS_FLOAT("in") && GT_IS_FLOAT("out") && has_several_inputs())
    .SetInplaceProposalFn(add_in_place);
GT_CPU_KERNEL("add_n", AddNKernel<Bfloat16>, GT_IS_BFLOAT16("in") && GT_IS_BFLOAT16("out") && has_several_inputs())
    .SetInplaceProposalFn(add_in_place);
GT_CPU_KERNEL("cast", RoundKernel, GT_IS_FLOAT("in") && GT_IS_BFLOAT16("out"));
GT_CPU_KERNEL("cast", WidenKernel, GT_IS_BFLOAT16("in") && GT_IS_FLOAT("out"));

}  // namespace

}  // namespace graph_train
