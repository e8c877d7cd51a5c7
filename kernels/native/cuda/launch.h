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

// The device and stream of an op kernel.
struct Queue {
  int device;  // ordinal
  Stream stream;
};
Queue queue_of(user_op::KernelComputeContext* ctx);

// Makes the device current in this thread, for libraries that use the current device.
void make_current(int device);

struct Size {
  unsigned int x = 1, y = 1, z = 1;
};

// Launches a kernel by name; its only parameter is the struct at `args`.
void launch_raw(const Queue& queue, const std::string& name, Size grid, unsigned int threads, const void* args);
// Cooperative launch of as many blocks as fit on the device, at most `max_blocks`: they run at the same time and may
// wait for each other by grid_barrier, with `grid_counters(queue)`.
void launch_cooperative_raw(const Queue& queue, const std::string& name, int64_t max_blocks, unsigned int threads,
                            const void* args);

template<typename Args>
void launch(const Queue& queue, const std::string& name, Size grid, unsigned int threads, const Args& args) {
  launch_raw(queue, name, grid, threads, &args);
}
template<typename Args>
void launch_cooperative(const Queue& queue, const std::string& name, int64_t max_blocks, unsigned int threads,
                        const Args& args) {
  launch_cooperative_raw(queue, name, max_blocks, threads, &args);
}
// Number of blocks that launch_cooperative will start.
int64_t cooperative_blocks(const Queue& queue, const std::string& name, int64_t max_blocks, unsigned int threads);

// Two zeros for grid_barrier; every kernel leaves them zero. Kernels of a stream share a pair, as they run one after
// another.
unsigned int* grid_counters(const Queue& queue);

// A copy of a host table in device memory. Equal tables share a copy, so a compiled graph, whose tensors have fixed
// addresses, copies each table once; the least recently used ones are freed beyond 64 MiB.
const void* device_table_raw(const Queue& queue, const void* table, size_t bytes);
template<typename T>
const T* device_table(const Queue& queue, const std::vector<T>& table) {
  return static_cast<const T*>(device_table_raw(queue, table.data(), table.size() * sizeof(T)));
}

// Workspace for the next kernel on this stream, such as cuDNN's; its content is undefined. Each stream has one block,
// which grows to the largest request; growing synchronises with the stream. Returns null if there is not enough memory.
void* workspace(const Queue& queue, size_t bytes);

void set_zero(const Queue& queue, void* memory, size_t bytes);

int multiprocessors(int device);
int compute_capability(int device);  // 10 * major + minor

// Number of blocks for `items` items, `per_block` in each; at least one.
inline Size blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return {static_cast<unsigned int>(blocks < 1 ? 1 : blocks)};
}

// Name of a kernel of GT_KERNEL_OF_ACTIVATIONS for a type.
std::string name_of(const char* kernel, oneflow::DataType type);

// Adds an op to the list of those with a CUDA kernel, which tests and benchmarks read.
struct Covered {
  explicit Covered(const char* op);
};

// Counts a launch or cuDNN call for graph_train_cuda_counts.
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
