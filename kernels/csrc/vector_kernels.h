// Inner loops, compiled once for each instruction set (vector_kernels.vec.cpp) and chosen when the library is loaded.
//
// All pointers are to float arrays without alignment; sums go to double so that long ones stay accurate. "Rows" are
// channels-last pixels: `rows` times `channels` numbers. Statistics are those of one call's range: callers add the
// ranges of several threads in a fixed order.
#ifndef GRAPH_TRAIN_KERNELS_VECTOR_KERNELS_H_
#define GRAPH_TRAIN_KERNELS_VECTOR_KERNELS_H_

#include <cstdint>

namespace graph_train {

// Per-channel numbers of a normalisation: out = (x - mean) * gain + bias, with gain = gamma / deviation.
struct ChannelAffine {
  const float* mean;
  const float* gain;
  const float* bias;
};

struct VectorKernels {
  void (*silu)(const float* x, float* y, int64_t n);
  void (*silu_grad)(const float* x, const float* dy, float* dx, int64_t n);
  void (*sigmoid)(const float* x, float* y, int64_t n);
  void (*sigmoid_grad)(const float* y, const float* dy, float* dx, int64_t n);
  void (*add)(const float* a, const float* b, float* out, int64_t n);

  // Sums of (x - shift) and its square: over one plane, and per channel over rows (sums[c], squares[c] are added to).
  void (*plane_moments)(const float* x, int64_t n, float shift, double* sum, double* square);
  void (*row_moments)(const float* x, int64_t rows, int64_t channels, const float* shift, double* sums, double* squares);

  // (x - mean) * gain + bias, followed by SiLU when `silu`.
  void (*plane_normalise)(const float* x, float* y, int64_t n, float mean, float gain, float bias, bool silu);
  void (*row_normalise)(const float* x, float* y, int64_t rows, int64_t channels, ChannelAffine affine, bool silu);

  // With dz the gradient before the optional SiLU: sums of dz and of dz * (x - mean).
  void (*plane_gradient_sums)(const float* x, const float* dy, int64_t n, float mean, float gain, float bias, bool silu,
                              double* sum, double* product);
  void (*row_gradient_sums)(const float* x, const float* dy, int64_t rows, int64_t channels, ChannelAffine affine, bool silu,
                            double* sums, double* products);

  // dx = (dz - offset - (x - mean) * slope) * gain.
  void (*plane_gradient)(const float* x, const float* dy, float* dx, int64_t n, float mean, float gain, float bias,
                         float offset, float slope, bool silu);
  void (*row_gradient)(const float* x, const float* dy, float* dx, int64_t rows, int64_t channels, ChannelAffine affine,
                       const float* offset, const float* slope, bool silu);
};

// The table for this CPU.
const VectorKernels& vector_kernels();

extern const VectorKernels vector_kernels_avx512;
extern const VectorKernels vector_kernels_avx2;
extern const VectorKernels vector_kernels_base;

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_VECTOR_KERNELS_H_
