// Two-dimensional convolution and its gradients with oneDNN, on plain pointers.
#pragma once

#include <array>
#include <cstdint>

namespace graph_train {

enum class ConvolutionPass : int64_t { kForward, kDataGradient, kFilterGradient };

// Sizes of one convolution. Activations are (N, C, H, W), or (N, H, W, C) with `channels_last`; weights
// are float, (O, C / groups, KH, KW), or (O, KH, KW, C / groups) with `weights_channels_last`.
struct ConvolutionShape {
  int64_t batch, in_channels, in_height, in_width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;  // padding below and to the right follows from the output size
  int64_t dilation_height, dilation_width;
  int64_t groups;
  int64_t channels_last, weights_channels_last;
  int64_t bfloat16_activations;  // else they are float
};

// forward:         x, weights -> y;  data gradient: y, weights -> x;  filter gradient: x, y -> weights
// (the pointer on the right of the arrow is written, where x and y are the gradients of the same name).
// Primitives are created once per shape; calls from several threads are serialised.
void convolve(ConvolutionPass pass, const ConvolutionShape& shape, void* x, float* weights, void* y);

}  // namespace graph_train
