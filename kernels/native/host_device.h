// GT_HOST_DEVICE marks functions shared by CPU and CUDA kernels, GT_DEVICE those of CUDA kernels only; both are always
// inlined. Also defines fixed-width integers for NVRTC, which has no standard headers.
#pragma once

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
