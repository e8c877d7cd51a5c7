// Activation functions and their gradients on the CPU.
#include "ops/activation_function/call.h"

namespace graph_train {

namespace {

// Loops for each kind, inlined into functions that are compiled for each instruction set.
template<typename T>
struct Values {
  const ActivateArgs& args;
  int64_t begin, end;
  template<ActivationKind kind>
  GT_INLINE void run() const {
    const auto* x = static_cast<const T*>(args.x);
    auto* y = static_cast<T*>(args.out);
    const float parameter = args.parameter;
    for (int64_t i = begin; i < end; ++i) y[i] = from_float<T>(activated<kind>(to_float(x[i]), parameter));
  }
};

template<typename T>
struct Gradients {
  const ActivateArgs& args;
  int64_t begin, end;
  template<ActivationKind kind>
  GT_INLINE void run() const {
    const auto* x = static_cast<const T*>(args.x);
    const auto* dy = static_cast<const T*>(args.dy);
    auto* dx = static_cast<T*>(args.out);
    const float parameter = args.parameter;
    for (int64_t i = begin; i < end; ++i) {
      dx[i] = from_float<T>(to_float(dy[i]) * activation_slope<kind>(to_float(x[i]), parameter));
    }
  }
};

template<typename T>
GT_INLINE void activate_as(const ActivateArgs& args, int64_t begin, int64_t end) {
  args.dy == nullptr ? with_kind(args.kind, Values<T>{args, begin, end})
                     : with_kind(args.kind, Gradients<T>{args, begin, end});
}

GT_VECTOR void activate(const ActivateArgs& args, float, int64_t begin, int64_t end) {
  activate_as<float>(args, begin, end);
}
GT_VECTOR void activate(const ActivateArgs& args, Bfloat16, int64_t begin, int64_t end) {
  activate_as<Bfloat16>(args, begin, end);
}

template<typename T, bool kGradient>
class ActivateKernelOf final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const ActivateArgs args = activate_args(ctx, kGradient);
    parallel_for(args.count, grain_of(1), [&](int64_t begin, int64_t end) { activate(args, T{}, begin, end); });
  }
};

template<typename T>
using ActivateKernel = ActivateKernelOf<T, false>;
template<typename T>
using ActivateGradKernel = ActivateKernelOf<T, true>;

GT_CPU_ACTIVATION_KERNEL("graph_train_activate", ActivateKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_activate_grad", ActivateGradKernel, GT_ALWAYS);

}  // namespace

}  // namespace graph_train
