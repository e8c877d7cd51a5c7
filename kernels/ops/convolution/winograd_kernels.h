// Inner loops of the Winograd convolutions, compiled once for each instruction set (winograd.vec.cpp).
//
// F(m x m, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): a tile of m x m
// outputs needs (m + 2)^2 products per pair of channels in place of 9 m^2. With d the tile's (m + 2)^2 inputs and g the
// weights, y = Aᵀ ((G g Gᵀ) . (Bᵀ d B)) A, the element-wise product being summed over the channels: a matrix product
// per "point". Numbers of channels are multiples of kWinogradChannels; channel c of point p is at points[p * stride +
// c].
#pragma once

#include <cstdint>

namespace graph_train {

constexpr int64_t kWinogradChannels = 16;

// One image of a batch, (H, W, C).
struct Image {
  float* data;
  int64_t height, width, channels;
};

// Weights (O, C, 3, 3), seen as a matrix (inner, columns) for each tap: element (k, n) has its 9 taps from
// data[k * inner_step + n * column_step] on, in reverse order where `reversed`.
struct WinogradWeights {
  const float* data;
  int64_t inner, columns;
  int64_t inner_step, column_step;
  bool reversed;
};

struct WinogradTile {
  int64_t side;    // m
  int64_t points;  // (m + 2)^2

  // Bᵀ d B of the pixels from (top, left) on; those outside of the image are zero.
  void (*input)(const Image& image, int64_t top, int64_t left, float* points, int64_t stride);
  // Aᵀ y A, written to the m x m pixels from (top, left) on that are inside the image.
  void (*output)(const float* points, int64_t stride, const Image& image, int64_t top, int64_t left);
  // A dy Aᵀ of the gradients of m x m outputs; outside of the image they are zero.
  void (*output_gradient)(const Image& image, int64_t top, int64_t left, float* points, int64_t stride);
  // G g Gᵀ of rows [begin, end) of the (inner, columns) matrices, in the order that `multiply` wants.
  void (*weights)(const WinogradWeights& weights, int64_t begin, int64_t end, float* points, int64_t stride);
  // Gᵀ s G of the sum s of `parts`, each of `points * stride` numbers, (C, O) for each point: gradients of the weights
  // (O, C, 3, 3) of the output channels [begin, end), multiples of kWinogradChannels.
  void (*weights_gradient)(const float* sums, int64_t stride, int64_t parts, int64_t out_channels, int64_t in_channels,
                           int64_t begin, int64_t end, float* weights);
};

struct WinogradKernels {
  WinogradTile tiles[2];  // F(2 x 2, 3 x 3) and F(4 x 4, 3 x 3)
  int64_t rows;           // that `multiply` computes at a time: it is fastest with multiples of them
  // c (rows, columns) = a (rows, inner) b, with one point of `weights` as b.
  void (*multiply)(const float* a, const float* b, int64_t rows, int64_t inner, int64_t columns, float* c);
  // c (rows, columns) += aᵀ b, with a (inner, rows) and b (inner, columns).
  void (*add_product)(const float* a, const float* b, int64_t rows, int64_t inner, int64_t columns, float* c);
};

// The table for this CPU; null where it has neither AVX-512 nor AVX2 with fused multiply-add.
const WinogradKernels* winograd_kernels();

extern const WinogradKernels* const winograd_kernels_avx512;
extern const WinogradKernels* const winograd_kernels_avx2;
extern const WinogradKernels* const winograd_kernels_base;

}  // namespace graph_train
