// Included by every kernel source of the plugin: OneFlow's kernel API, and parallel_for.
// All .cpp files of the package are compiled and linked automatically; none needs to be listed anywhere.
//
// 1. A faster kernel for an op of OneFlow (same name; its priority selects it, in eager mode and in graphs):
//
//      class SiluKernel final : public StatelessKernel {
//        void Compute(user_op::KernelComputeContext* ctx) const override {
//          const auto* in = ctx->Tensor4ArgNameAndIndex("in", 0);
//          auto* out = ctx->Tensor4ArgNameAndIndex("out", 0);
//          ... in->dptr<float>(), out->mut_dptr<float>(), in->shape_view().elem_cnt() ...
//        }
//      };
//      GT_CPU_KERNEL("silu", SiluKernel, GT_IS_FLOAT("in"))
//
// 2. A new op: an Op of native/op.h, then a kernel as above (self_check.cpp is the smallest complete example). In
// Python:
//    kernels/framework/dispatch.py.
//
// 3. A plain function: extern "C" GT_EXPORT int graph_train_x(const float* in, int64_t n); in Python
//    kernels.plugin.plugin_library().graph_train_x with argtypes set by the caller. For host arrays outside the step.
//
// Vectorisation: mark the function that holds the innermost loops GT_VECTOR. It is compiled for AVX-512, AVX2 and plain
// x86-64, and the loader selects one at start-up. Such a function must not contain an OpenMP pragma (the outlined body
// would lose the target); call it from parallel_for with a range.
// This header has an include guard, because GCC warns about #pragma once in a precompiled header.
#ifndef GRAPH_TRAIN_KERNELS_COMMON_H_
#define GRAPH_TRAIN_KERNELS_COMMON_H_

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "oneflow/core/framework/framework.h"

#define GT_EXPORT __attribute__((visibility("default")))
#define GT_VECTOR __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define GT_INLINE inline __attribute__((always_inline))

#define GT_IS_FLOAT(arg) (oneflow::user_op::HobDataType(arg, 0) == oneflow::DataType::kFloat)
#define GT_IS_BFLOAT16(arg) (oneflow::user_op::HobDataType(arg, 0) == oneflow::DataType::kBFloat16)
#define GT_IS_DOUBLE(arg) (oneflow::user_op::HobDataType(arg, 0) == oneflow::DataType::kDouble)

// Registers `kernel` for CPU tensors that fulfil `condition`, ahead of OneFlow's own kernels.
#define GT_CPU_KERNEL(op, kernel, condition)                                                            \
  REGISTER_USER_KERNEL(op)                                                                              \
      .SetCreateFn<kernel>()                                                                            \
      .SetIsMatchedHob((oneflow::user_op::HobDeviceType() == oneflow::DeviceType::kCPU) && (condition)) \
      .SetPriority(oneflow::user_op::kKernelPriorityOptimized)

// Registers a kernel template for both activation types supported on the CPU.
#define GT_CPU_ACTIVATION_KERNEL(op, kernel, condition)              \
  GT_CPU_KERNEL(op, kernel<float>, GT_IS_FLOAT("x") && (condition)); \
  GT_CPU_KERNEL(op, kernel<Bfloat16>, GT_IS_BFLOAT16("x") && (condition))
#define GT_ALWAYS (oneflow::user_op::HobTrue())

namespace graph_train {

namespace user_op = oneflow::user_op;

// Base of kernels that override Compute(KernelComputeContext*) only and have nothing to do if all outputs are empty.
class StatelessKernel : public user_op::OpKernel {
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// Number of threads that kernels may use: OMP_NUM_THREADS, or the cores of the affinity mask.
int num_threads();

// The core of the calling thread; negative if unknown.
int current_core();
// Moves the calling worker thread off `core`, if it is running there.
void leave_core(int core);

// Calls body(begin, end) on disjoint ranges that cover [0, count), on several threads if there is enough work.
// The split depends only on count, grain and the number of threads, so results are reproducible bitwise.
// `grain` is the minimum number of items per thread.
template<typename Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  const int64_t parts = std::min<int64_t>(num_threads(), (count + grain - 1) / std::max<int64_t>(grain, 1));
  if (parts <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  const int callers_core = current_core();
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    if (omp_get_thread_num() > 0) leave_core(callers_core);
    body(count * part / parts, count * (part + 1) / parts);
  }
}

// The grain of parallel_for over items of this many elements: with fewer elements, waking a thread costs more than it
// saves.
inline int64_t grain_of(int64_t elements_per_item) {
  constexpr int64_t kElementsPerThread = 1 << 13;
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_item));
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_COMMON_H_
