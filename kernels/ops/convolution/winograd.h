// 3x3 convolutions with fewer multiplications: what is chosen where, and why, says winograd.cpp.
#ifndef GRAPH_TRAIN_KERNELS_WINOGRAD_H_
#define GRAPH_TRAIN_KERNELS_WINOGRAD_H_

#include "ops/convolution/convolution.h"

namespace graph_train {

// True for what convolve_winograd can do and does faster than a direct convolution on this CPU: float32, channels last,
// stride 1, one group, channels that are multiples of 16. It depends on nothing but sizes and the number of threads.
bool is_winograd(ConvolutionPass pass, const ConvolutionShape& shape);

// As `convolve`. Gradients of weights depend on the number of threads; other results depend on nothing but their inputs.
void convolve_winograd(ConvolutionPass pass, const ConvolutionShape& shape, float* x, float* weights, float* y);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_WINOGRAD_H_
