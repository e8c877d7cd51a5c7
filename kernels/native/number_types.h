// The 16-bit types of activations, for CPU and CUDA kernels. They are storage types: arithmetic is done in float.
#pragma once

#include "native/host_device.h"

namespace graph_train {

// The upper half of a float.
struct Bfloat16 {
  uint16_t bits;
};

// IEEE 754 binary16.
struct Half {
  uint16_t bits;
};

#ifdef __CUDACC__
GT_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
GT_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
#else
// `static`: sources that are compiled for several instruction sets include this, and their copies must not be merged.
static inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
static inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
#endif

#ifdef __CUDACC__
#define GT_CONVERT GT_DEVICE
#else
#define GT_CONVERT static inline
#endif

GT_CONVERT float to_float(float x) { return x; }
GT_CONVERT float to_float(Bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
GT_CONVERT float to_float(Half x) {
#ifdef __CUDACC__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  // The shifted bits are the value times 2^-112, exactly, also for subnormal numbers.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 5.192296858534828e33f));
#endif
}

// Rounds to nearest, ties to even; NaN becomes the quiet NaN; float16 overflows to infinity.
template<typename T>
GT_CONVERT T from_float(float x);
template<>
GT_HOST_DEVICE float from_float<float>(float x) {
  return x;
}
template<>
GT_HOST_DEVICE Bfloat16 from_float<Bfloat16>(float x) {
  if (x != x) return {0x7FC0};
  const uint32_t bits = bits_of(x);
  return {static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
template<>
GT_HOST_DEVICE Half from_float<Half>(float x) {
  if (x != x) return {0x7E00};
#ifdef __CUDACC__
  Half value;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
  return value;
#else
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // below 2^-14: a float sum whose last bit is 2^-24 rounds it
    return {static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13))};
#endif
}

}  // namespace graph_train
