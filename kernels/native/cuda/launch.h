// Asynchronous launches of device code by CUDA op kernels, on OneFlow's stream.
//
//   class SiluCudaKernel final : public StatelessKernel {
//     void Compute(user_op::KernelComputeContext* ctx) const override {
//       const SiluArgs args{...device pointers and sizes...};          // the struct that the .cu file's kernel takes
//       cuda::launch(ctx, cuda::name_of("silu", type), cuda::blocks_for(n, 256), 256, args);
//     }
//   };
//   GT_CUDA_KERNEL("silu", SiluCudaKernel, GT_IS_ACTIVATION("in"))
#pragma once

#include <string>
#include <vector>

#include "native/common.h"
#include "native/cuda/driver.h"

namespace graph_train::cuda {

// What an op kernel runs on.
struct Queue {
  int device;  // ordinal
  Stream stream;
};
Queue queue_of(user_op::KernelComputeContext* ctx);

// For libraries that use the current device of the thread.
void make_current(int device);

struct Size {
  unsigned int x = 1, y = 1, z = 1;
};

// Launches the kernel of that name, whose one parameter is the struct at `args`.
void launch_raw(const Queue& queue, const std::string& name, Size grid, unsigned int threads, const void* args);
// All blocks are under way at once and may wait for each other (grid_barrier); as many as fit on the device, and at most
// `most_blocks`. Kernels that do so get `grid_counters(queue)`.
void launch_together_raw(const Queue& queue, const std::string& name, int64_t most_blocks, unsigned int threads,
                         const void* args);

template<typename Args>
void launch(const Queue& queue, const std::string& name, Size grid, unsigned int threads, const Args& args) {
  launch_raw(queue, name, grid, threads, &args);
}
template<typename Args>
void launch_together(const Queue& queue, const std::string& name, int64_t most_blocks, unsigned int threads,
                     const Args& args) {
  launch_together_raw(queue, name, most_blocks, threads, &args);
}
// How many blocks launch_together will start.
int64_t blocks_together(const Queue& queue, const std::string& name, int64_t most_blocks, unsigned int threads);

// Two zeros for grid_barrier; every kernel leaves them zero. One pair a stream, whose kernels run one after another.
unsigned int* grid_counters(const Queue& queue);

// A copy of a host table in device memory. Equal tables share a copy, so a compiled graph, whose tensors have fixed addresses, copies each table once.
const void* device_table_raw(const Queue& queue, const void* table, size_t bytes);
template<typename T>
const T* device_table(const Queue& queue, const std::vector<T>& table) {
  return static_cast<const T*>(device_table_raw(queue, table.data(), table.size() * sizeof(T)));
}

// Memory for the one that runs next on this stream, as cuDNN wants it; its content is undefined. One block a stream, which
// grows to the largest request: only then is the stream waited for.
void* workspace(const Queue& queue, size_t bytes);

void set_zero(const Queue& queue, void* memory, size_t bytes);

int multiprocessors(int device);
int compute_capability(int device);  // 10 * major + minor

// Blocks for `items` at `per_block` each; at least one.
inline Size blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return {static_cast<unsigned int>(blocks < 1 ? 1 : blocks)};
}

// "kernel" with the ending of GT_KERNEL_OF_ACTIVATIONS for a type.
std::string name_of(const char* kernel, oneflow::DataType type);

// Notes that an op has a CUDA kernel, for the list that tests and benchmarks read.
struct Covered {
  explicit Covered(const char* op);
};

// Launches, including cuDNN calls, since the last graph_train_cuda_reset_counts.
void count(const std::string& what);

}  // namespace graph_train::cuda

#define GT_IS_HALF(arg) (oneflow::user_op::HobDataType(arg, 0) == oneflow::DataType::kFloat16)
#define GT_IS_ACTIVATION(arg) (GT_IS_FLOAT(arg) || GT_IS_BFLOAT16(arg) || GT_IS_HALF(arg))

#ifdef GT_EMULATED_CUDA
#define GT_CUDA_DEVICE_TYPE oneflow::DeviceType::kCPU
#else
#define GT_CUDA_DEVICE_TYPE oneflow::DeviceType::kCUDA
#endif

// Registers `kernel` for CUDA tensors that fulfil `condition`, ahead of all of OneFlow's own.
#define GT_CUDA_KERNEL(op, kernel, condition)                                                     \
  static const ::graph_train::cuda::Covered OF_PP_CAT(covered, __COUNTER__)(op);                  \
  REGISTER_USER_KERNEL(op)                                                                        \
      .SetCreateFn<kernel>()                                                                      \
      .SetIsMatchedHob((oneflow::user_op::HobDeviceType() == GT_CUDA_DEVICE_TYPE) && (condition)) \
      .SetPriority(oneflow::user_op::kKernelPriorityOptimized + 1)
