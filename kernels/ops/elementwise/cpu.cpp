// Elementwise ops of OneFlow: silu and its gradient, that of sigmoid (float), add_n (float, Bfloat16), and cast between
// those two.
#include "native/common.h"
#include "native/vector_kernels.h"

namespace graph_train {

namespace {

// Below this many numbers waking a thread costs more than it saves.
constexpr int64_t kPerThread = 1 << 14;

using Unary = void (*)(const float*, float*, int64_t);
template<typename T>
using BinaryOf = void (*)(const T*, const T*, T*, int64_t);
using Binary = BinaryOf<float>;

void run_unary(Unary function, const user_op::Tensor* in, user_op::Tensor* out) {
  const float* x = in->dptr<float>();
  float* y = out->mut_dptr<float>();
  parallel_for(in->shape_view().elem_cnt(), kPerThread,
               [=](int64_t begin, int64_t end) { function(x + begin, y + begin, end - begin); });
}

template<typename T>
void run_binary(BinaryOf<T> function, const user_op::Tensor* left, const user_op::Tensor* right, user_op::Tensor* out) {
  const T* a = static_cast<const T*>(left->dptr<void>());
  const T* b = static_cast<const T*>(right->dptr<void>());
  T* y = static_cast<T*>(out->mut_dptr<void>());
  parallel_for(left->shape_view().elem_cnt(), kPerThread,
               [=](int64_t begin, int64_t end) { function(a + begin, b + begin, y + begin, end - begin); });
}

template<Unary VectorKernels::* kFunction>
class UnaryKernel final : public user_op::OpKernel {
 public:
  UnaryKernel(const char* in, const char* out) : in_(in), out_(out) {}

 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    run_unary(vector_kernels().*kFunction, ctx->Tensor4ArgNameAndIndex(in_, 0), ctx->Tensor4ArgNameAndIndex(out_, 0));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
  const char* in_;
  const char* out_;
};

template<Binary VectorKernels::* kFunction>
class BinaryKernel final : public user_op::OpKernel {
 public:
  BinaryKernel(const char* left, const char* right, const char* out) : left_(left), right_(right), out_(out) {}

 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    run_binary<float>(vector_kernels().*kFunction, ctx->Tensor4ArgNameAndIndex(left_, 0),
                      ctx->Tensor4ArgNameAndIndex(right_, 0), ctx->Tensor4ArgNameAndIndex(out_, 0));
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
  const char* left_;
  const char* right_;
  const char* out_;
};

template<typename T>
class AddNKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    auto* out = ctx->Tensor4ArgNameAndIndex("out", 0);
    const auto count = static_cast<int32_t>(ctx->inputs().size());
    const auto* left = ctx->Tensor4ArgNameAndIndex("in", 0);
    for (int32_t i = 1; i < count; ++i) {
      run_binary<T>(vector_kernels().rows<T>().add, i == 1 ? left : out, ctx->Tensor4ArgNameAndIndex("in", i), out);
    }
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

template<typename From, typename To, void (*VectorKernels::*kConvert)(const From*, To*, int64_t)>
class CastKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* in = ctx->Tensor4ArgNameAndIndex("in", 0);
    const auto* x = static_cast<const From*>(in->dptr<void>());
    auto* y = static_cast<To*>(ctx->Tensor4ArgNameAndIndex("out", 0)->mut_dptr<void>());
    parallel_for(in->shape_view().elem_cnt(), kPerThread,
                 [=](int64_t begin, int64_t end) { (vector_kernels().*kConvert)(x + begin, y + begin, end - begin); });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

using RoundKernel = CastKernel<float, Bfloat16, &VectorKernels::round>;
using WidenKernel = CastKernel<Bfloat16, float, &VectorKernels::widen>;

// "out" may be the memory of input 0, as OneFlow's own kernel proposes.
oneflow::Maybe<void> sum_into_first(const user_op::InferContext&, const user_op::AddInplaceArgPair& add_pair) {
  return add_pair("out", 0, "in", 0, true);
}

auto many_inputs() {
  return oneflow::hob::make_custom("two or more inputs",
                                   [](const user_op::KernelRegContext& ctx) { return ctx.inputs().size() >= 2; });
}

const user_op::OpKernel* make_silu() { return user_op::NewOpKernel<UnaryKernel<&VectorKernels::silu>>("in", "out"); }
const user_op::OpKernel* make_silu_grad() {
  return user_op::NewOpKernel<BinaryKernel<&VectorKernels::silu_grad>>("x", "dy", "dx");
}
const user_op::OpKernel* make_sigmoid_grad() {
  return user_op::NewOpKernel<BinaryKernel<&VectorKernels::sigmoid_grad>>("y", "dy", "dx");
}

#define GT_CPU_FACTORY(op, factory, condition)                                                          \
  REGISTER_USER_KERNEL(op)                                                                              \
      .SetCreateFn(factory)                                                                             \
      .SetIsMatchedHob((oneflow::user_op::HobDeviceType() == oneflow::DeviceType::kCPU) && (condition)) \
      .SetPriority(oneflow::user_op::kKernelPriorityOptimized)

GT_CPU_FACTORY("silu", make_silu, GT_IS_FLOAT("in") && GT_IS_FLOAT("out"));
GT_CPU_FACTORY("silu_grad", make_silu_grad, GT_IS_FLOAT("dy") && GT_IS_FLOAT("dx"));
GT_CPU_FACTORY("sigmoid_grad", make_sigmoid_grad, GT_IS_FLOAT("dy") && GT_IS_FLOAT("dx"));
GT_CPU_KERNEL("add_n", AddNKernel<float>, GT_IS_FLOAT("in") && GT_IS_FLOAT("out") && many_inputs())
    .SetInplaceProposalFn(sum_into_first);
GT_CPU_KERNEL("add_n", AddNKernel<Bfloat16>, GT_IS_BFLOAT16("in") && GT_IS_BFLOAT16("out") && many_inputs())
    .SetInplaceProposalFn(sum_into_first);
GT_CPU_KERNEL("cast", RoundKernel, GT_IS_FLOAT("in") && GT_IS_BFLOAT16("out"));
GT_CPU_KERNEL("cast", WidenKernel, GT_IS_BFLOAT16("in") && GT_IS_FLOAT("out"));

}  // namespace

}  // namespace graph_train
