// CUDA's built-ins for kernels compiled by g++, so that tests run the CUDA sources on a CPU.
//
// Threads of a block are executed one after another, in the order of their numbers or (graph_train_emulated_order) in a
// random one. Those of a GT_BLOCK_KERNEL are fibers that switch at barriers and warp shuffles. What would hang or
// misbehave on a GPU ends the process with a message: a barrier that some thread of the block never reaches, lanes that
// meet at different shuffles or with another mask than that of the whole warp, and too much shared memory.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace graph_train::emulation {

struct Dimensions {
  unsigned int x = 1, y = 1, z = 1;
};

// Indices of the running thread.
struct Position {
  Dimensions thread, block, block_size, grid;
};
extern thread_local Position position;

// A kernel, registered for the emulated driver.
struct Kernel {
  Kernel(const char* name, size_t args_bytes, int max_threads, bool uses_barriers, void (*run)(const void*));
  const char* name;
  size_t args_bytes;
  int max_threads;
  bool uses_barriers;
  void (*run)(const void* args);
  const Kernel* next;
};
const Kernel* find_kernel(const char* name);

// Runs all threads; with `together`, all blocks run at the same time, as in a cooperative launch.
void run(const Kernel& kernel, Dimensions grid, Dimensions block, const void* args, bool together);

void block_barrier();
// Waits for the other lanes of this warp, which must call the same function with the same mask, that of all lanes.
// Afterwards `of_lane` returns the value `own` of any lane, up to 8 bytes, until the next exchange.
void exchange_in_warp(const char* function, unsigned int mask, const void* own, size_t bytes);
const void* of_lane(unsigned int lane);
// Lets other threads of a cooperative launch continue.
void spin();
// Shared memory of the running block; `key` identifies the declaration in the kernel.
void* shared_memory(const void* key, size_t bytes);

template<typename T>
T from_lane(const char* function, unsigned int mask, T value, unsigned int lane) {
  static_assert(sizeof(T) <= 8, "warp shuffles carry up to 8 bytes");
  exchange_in_warp(function, mask, &value, sizeof(T));
  T result;
  std::memcpy(&result, of_lane(lane), sizeof(T));
  return result;
}

inline unsigned int lane_of_thread() { return position.thread.x % 32; }

}  // namespace graph_train::emulation

#define threadIdx (graph_train::emulation::position.thread)
#define blockIdx (graph_train::emulation::position.block)
#define blockDim (graph_train::emulation::position.block_size)
#define gridDim (graph_train::emulation::position.grid)

#define GT_SHARED(type, name, count) \
  static char name##_key = 0;        \
  type* const name = static_cast<type*>(graph_train::emulation::shared_memory(&name##_key, sizeof(type) * (count)))
#define GT_EMULATED_KERNEL(name, Args, threads, barriers)                                                              \
  static void name##_body(const Args args);                                                                            \
  static const graph_train::emulation::Kernel name##_kernel(                                                           \
      #name, sizeof(Args), threads, barriers, [](const void* args) { name##_body(*static_cast<const Args*>(args)); }); \
  static void name##_body(const Args args)
#define GT_KERNEL(name, Args, threads) GT_EMULATED_KERNEL(name, Args, threads, false)
#define GT_BLOCK_KERNEL(name, Args, threads) GT_EMULATED_KERNEL(name, Args, threads, true)
#define GT_SPIN() graph_train::emulation::spin()

inline void __syncthreads() { graph_train::emulation::block_barrier(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template<typename T>
T __shfl_xor_sync(unsigned int mask, T value, int distance) {
  const unsigned int own = graph_train::emulation::lane_of_thread();
  return graph_train::emulation::from_lane(__func__, mask, value, own ^ static_cast<unsigned int>(distance));
}
template<typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int distance) {
  const unsigned int own = graph_train::emulation::lane_of_thread();
  return graph_train::emulation::from_lane(__func__, mask, value, own + distance < 32 ? own + distance : own);
}
template<typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int distance) {
  const unsigned int own = graph_train::emulation::lane_of_thread();
  return graph_train::emulation::from_lane(__func__, mask, value, own < distance ? own : own - distance);
}
template<typename T>
T __shfl_sync(unsigned int mask, T value, int lane) {
  return graph_train::emulation::from_lane(__func__, mask, value, static_cast<unsigned int>(lane) % 32);
}
inline unsigned int __ballot_sync(unsigned int mask, bool holds) {
  unsigned int votes = 0;
  graph_train::emulation::exchange_in_warp(__func__, mask, &holds, sizeof(holds));
  for (unsigned int lane = 0; lane < 32; ++lane) {
    bool of_other;
    std::memcpy(&of_other, graph_train::emulation::of_lane(lane), sizeof(of_other));
    votes |= static_cast<unsigned int>(of_other) << lane;
  }
  return votes;
}

template<typename T>
T atomicAdd(T* target, T value) {
  static_assert(std::is_integral_v<T>, "sums of floating-point numbers would depend on the order of the threads");
  return __atomic_fetch_add(target, value, __ATOMIC_SEQ_CST);
}
inline int atomicMax(int* target, int value) {
  int old = __atomic_load_n(target, __ATOMIC_SEQ_CST);
  while (old < value && !__atomic_compare_exchange_n(target, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}

inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }
inline float __fdividef(float a, float b) { return a / b; }
