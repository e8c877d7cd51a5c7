// Inner loops, compiled once for each instruction set (vector_kernels.vec.cpp) and chosen when the library is loaded.
//
// Pointers need no alignment; sums are double, so that long ones stay accurate. "Rows" are channels-last pixels: `rows`
// times `channels` values, float or Bfloat16; arithmetic is in float for both. Statistics are those of one call's
// range: callers add the ranges of several threads in a fixed order.
#pragma once

#include <cstdint>
#include <type_traits>

#include "native/number_types.h"

namespace graph_train {

// Per-channel parameters of a normalisation: out = (x - mean) * gain + bias, with gain = gamma / deviation.
struct ChannelAffine {
  const float* mean;
  const float* gain;
  const float* bias;
};

// Kernels for activations of type T. With dz the gradient before the optional SiLU, the gradient of the input is
// dx = (dz - offset - (x - mean) * slope) * gain.
template<typename T>
struct RowKernels {
  void (*add)(const T* a, const T* b, T* out, int64_t n);
  // Per channel, sums of (x - shift) and its square are added to sums[c] and squares[c].
  void (*moments)(const T* x, int64_t rows, int64_t channels, const float* shift, double* sums, double* squares);
  // (x - mean) * gain + bias, followed by SiLU when `silu`.
  void (*normalise)(const T* x, T* y, int64_t rows, int64_t channels, ChannelAffine affine, bool silu);
  // Sums of dz and of dz * (x - mean). With `silu`, dz is stored unless `dz` is null; `gradient` is then called with dz
  // in place of dy and without `silu`, and dx may be the same memory.
  void (*gradient_sums)(const T* x, const T* dy, int64_t rows, int64_t channels, ChannelAffine affine, bool silu, T* dz,
                        double* sums, double* products);
  void (*gradient)(const T* x, const T* dy, T* dx, int64_t rows, int64_t channels, ChannelAffine affine,
                   const float* offset, const float* slope, bool silu);
};

// The same for single planes of float values, without SiLU.
struct PlaneKernels {
  void (*moments)(const float* x, int64_t n, float shift, double* sum, double* square);
  void (*normalise)(const float* x, float* y, int64_t n, float mean, float gain, float bias);
  void (*gradient_sums)(const float* x, const float* dy, int64_t n, float mean, double* sum, double* product);
  void (*gradient)(const float* x, const float* dy, float* dx, int64_t n, float mean, float gain, float offset,
                   float slope);
};

struct VectorKernels {
  void (*silu)(const float* x, float* y, int64_t n);
  void (*silu_grad)(const float* x, const float* dy, float* dx, int64_t n);
  void (*sigmoid_grad)(const float* y, const float* dy, float* dx, int64_t n);
  void (*round)(const float* x, Bfloat16* y, int64_t n);
  void (*widen)(const Bfloat16* x, float* y, int64_t n);
  PlaneKernels planes;
  RowKernels<float> float_rows;
  RowKernels<Bfloat16> bfloat16_rows;

  template<typename T>
  const RowKernels<T>& rows() const {
    if constexpr (std::is_same_v<T, float>) {
      return float_rows;
    } else {
      return bfloat16_rows;
    }
  }
};

// The best instruction set of this CPU among those that *.vec.cpp files are compiled for.
enum class InstructionSet { kBase, kAvx2, kAvx512 };
InstructionSet instruction_set();

// Selects the table of this CPU's instruction set.
template<typename T>
const T& for_this_cpu(const T& avx512, const T& avx2, const T& base) {
  const InstructionSet set = instruction_set();
  return set == InstructionSet::kAvx512 ? avx512 : set == InstructionSet::kAvx2 ? avx2 : base;
}

// The table for this CPU.
const VectorKernels& vector_kernels();

extern const VectorKernels vector_kernels_avx512;
extern const VectorKernels vector_kernels_avx2;
extern const VectorKernels vector_kernels_base;

}  // namespace graph_train
