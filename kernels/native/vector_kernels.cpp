#include "native/vector_kernels.h"

namespace graph_train {

const VectorKernels& vector_kernels() {
  static const VectorKernels& chosen = [&]() -> const VectorKernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
      return vector_kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
      return vector_kernels_avx2;
    }
    return vector_kernels_base;
  }();
  return chosen;
}

}  // namespace graph_train
