// 3x3 convolutions with fewer multiplications; winograd.cpp chooses the algorithm.
#pragma once

#include "ops/convolution/convolution.h"

namespace graph_train {

// Whether convolve_winograd supports the shape and is faster than a direct convolution on this CPU: float32, channels
// last, stride 1, one group, channels that are multiples of 16. Depends only on sizes and the number of threads.
bool is_winograd(ConvolutionPass pass, const ConvolutionShape& shape);

// As `convolve`. Only the gradients of weights depend on the number of threads.
void convolve_winograd(ConvolutionPass pass, const ConvolutionShape& shape, float* x, float* weights, float* y);

}  // namespace graph_train
