// The upper half of a float: what activations on the CPU are stored as under --amp. Arithmetic is done in float.
#ifndef GRAPH_TRAIN_KERNELS_BFLOAT16_H_
#define GRAPH_TRAIN_KERNELS_BFLOAT16_H_

#include <cstdint>
#include <cstring>

namespace graph_train {

struct Bfloat16 {
  uint16_t bits;
};

// `static`: vector_kernels.vec.cpp is compiled for several instruction sets, whose copies must not be merged.
static inline float to_float(float x) { return x; }
static inline float to_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To the nearest, ties to even; any NaN becomes the quiet one.
template<typename T>
static inline T from_float(float x);
template<>
inline float from_float<float>(float x) {
  return x;
}
template<>
inline Bfloat16 from_float<Bfloat16>(float x) {
  if (x != x) return {0x7FC0};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_BFLOAT16_H_
