// GT_HOST_DEVICE: before a function that the CPU's and the CUDA kernels share; GT_DEVICE: of CUDA kernels only. Both are
// always inlined. Fixed-width integers for NVRTC, which has no standard headers.
#ifndef GRAPH_TRAIN_KERNELS_HOST_DEVICE_H_
#define GRAPH_TRAIN_KERNELS_HOST_DEVICE_H_

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = unsigned long;
#else
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#endif

#ifdef __CUDACC__
#define GT_HOST_DEVICE __host__ __device__ __forceinline__
#define GT_DEVICE __device__ __forceinline__
#else
#define GT_HOST_DEVICE inline __attribute__((always_inline))
#define GT_DEVICE inline __attribute__((always_inline))
#endif

#endif  // GRAPH_TRAIN_KERNELS_HOST_DEVICE_H_
