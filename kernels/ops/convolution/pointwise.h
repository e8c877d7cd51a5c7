// Convolutions with a 1x1 kernel as matrix products on the activations as they are: no layout is converted.
#ifndef GRAPH_TRAIN_KERNELS_POINTWISE_H_
#define GRAPH_TRAIN_KERNELS_POINTWISE_H_

#include "ops/convolution/convolution.h"

namespace graph_train {

// True for what convolve_pointwise can do and does faster than oneDNN's convolution: stride 1, no padding, one group.
bool is_pointwise(ConvolutionPass pass, const ConvolutionShape& shape);

// As `convolve`; results depend on the number of threads but not on anything else.
void convolve_pointwise(ConvolutionPass pass, const ConvolutionShape& shape, float* x, float* weights, float* y);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_POINTWISE_H_
