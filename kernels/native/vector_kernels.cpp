#include "native/vector_kernels.h"

namespace graph_train {

namespace {

InstructionSet best_instruction_set() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
      && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    return InstructionSet::kAvx2;
  }
  return InstructionSet::kBase;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet best = best_instruction_set();
  return best;
}

const VectorKernels& vector_kernels() {
  return for_this_cpu(vector_kernels_avx512, vector_kernels_avx2, vector_kernels_base);
}

}  // namespace graph_train
