// Convolutions with a 1x1 kernel as matrix products, without converting layouts.
#pragma once

#include "ops/convolution/convolution.h"

namespace graph_train {

// Whether convolve_pointwise supports the shape and is faster than oneDNN: stride 1, no padding, one group.
bool is_pointwise(ConvolutionPass pass, const ConvolutionShape& shape);

// As `convolve`; results depend on the number of threads.
void convolve_pointwise(ConvolutionPass pass, const ConvolutionShape& shape, float* x, float* weights, float* y);

}  // namespace graph_train
