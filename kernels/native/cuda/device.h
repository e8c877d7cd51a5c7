// Included by every .cu file: CUDA's built-ins with NVRTC, or their emulation when g++ compiles the file for tests.
//
// A kernel takes one struct by value, declared in the header that its launching code includes too:
//
//   GT_KERNEL(scale_f32, ScaleArgs, 256) { ... threadIdx.x, args.x ... }       no barrier, no warp shuffle
//   GT_BLOCK_KERNEL(sum_f32, SumArgs, 256) { ... __syncthreads(); ... }        threads of a block communicate
// 256 is the maximum number of threads per block. Shared memory: GT_SHARED(float, partial, 256).
#pragma once

#include "native/host_device.h"
#include "native/number_types.h"

#ifdef __CUDACC__

#define GT_SHARED(type, name, count) __shared__ type name[count]
#define GT_KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Args args)
// Limits the threads per multiprocessor; otherwise ptxas spills registers to fit one more block.
#define GT_BLOCK_KERNEL(name, Args, threads) \
  extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) name(const Args args)
// To be called in a loop that waits for another block.
#define GT_SPIN()

#else

#include "native/cuda/emulation.h"

#endif

namespace graph_train {

constexpr int kWarp = 32;

// Instantiates a kernel template for the three types of activations: name_f32, name_bf16, name_f16.
#define GT_KERNEL_OF_ACTIVATIONS(kind, name, Args, threads)  \
  kind(name##_f32, Args, threads) { name<float>(args); }     \
  kind(name##_bf16, Args, threads) { name<Bfloat16>(args); } \
  kind(name##_f16, Args, threads) { name<Half>(args); }

// Elements of one 16-byte access.
template<typename T>
constexpr int kPerAccess = 16 / sizeof(T);

template<typename T>
struct alignas(16) Access {
  T values[kPerAccess<T>];
};

// Views of tensors may be unaligned.
GT_DEVICE bool is_aligned(const void* pointer) { return reinterpret_cast<uint64_t>(pointer) % 16 == 0; }

// Loads `number` <= kMax elements as floats, by 16-byte accesses if there are kMax and they are aligned; kMax is a
// multiple of 8.
template<int kMax, typename T>
GT_DEVICE void load_floats(const T* from, int number, float* to) {
  if (number == kMax && is_aligned(from)) {
    for (int first = 0; first < kMax; first += kPerAccess<T>) {
      const auto access = *reinterpret_cast<const Access<T>*>(from + first);
      for (int i = 0; i < kPerAccess<T>; ++i) to[first + i] = to_float(access.values[i]);
    }
    return;
  }
  for (int i = 0; i < kMax; ++i) {
    if (i < number) to[i] = to_float(from[i]);
  }
}

template<int kMax, typename T>
GT_DEVICE void store_floats(T* to, int number, const float* from) {
  if (number == kMax && is_aligned(to)) {
    for (int first = 0; first < kMax; first += kPerAccess<T>) {
      Access<T> access;
      for (int i = 0; i < kPerAccess<T>; ++i) access.values[i] = from_float<T>(from[first + i]);
      *reinterpret_cast<Access<T>*>(to + first) = access;
    }
    return;
  }
  for (int i = 0; i < kMax; ++i) {
    if (i < number) to[i] = from_float<T>(from[i]);
  }
}

// Sum over a warp in a fixed order; every lane gets it.
template<typename T>
GT_DEVICE T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Sum over a block of kThreads threads in a fixed order; every thread gets it. All threads of the block must call it.
template<int kThreads, typename T>
GT_DEVICE T block_sum(T value) {
  GT_SHARED(T, of_warps, kThreads / kWarp);
  value = warp_sum(value);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = of_warps[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) total += of_warps[warp];
  return total;
}

// Waits until all blocks of a cooperative launch have arrived; their earlier writes are visible afterwards. `counters`
// are two zeros in global memory, which belong to this launch and are zero again once every block has called
// leave_grid.
GT_DEVICE void grid_barrier(unsigned int* counters) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned int ticket = atomicAdd(&counters[0], 1u);
    const unsigned int target = (ticket / gridDim.x + 1) * gridDim.x;
    while (*static_cast<volatile unsigned int*>(&counters[0]) < target) {
      GT_SPIN();
    }
    __threadfence();
  }
  __syncthreads();
}

// Must be the last call of a block that uses grid_barrier.
GT_DEVICE void leave_grid(unsigned int* counters) {
  if (threadIdx.x == 0 && atomicAdd(&counters[1], 1u) == gridDim.x - 1) {
    counters[0] = 0;
    counters[1] = 0;
  }
}

}  // namespace graph_train
