// Convolution with cuDNN: descriptors and algorithm are chosen once for each size and device.
#pragma once

#include "native/cuda/cudnn.h"
#include "native/cuda/launch.h"
#include "ops/convolution/convolution.h"

namespace graph_train {

// (B, H, W, C) activations and packed weights, (O, KH, KW, I / groups), all of one type; sums are float32.
struct CudnnDescriptors {
  cudnn::Descriptor x, weights, y, convolution;
};
CudnnDescriptors make_descriptors(const ConvolutionShape& shape, cudnn::DataType type);

// Runs the pass on the stream; pointers as in `convolve`, aligned to 16 bytes, and the batch is not empty. Only
// deterministic algorithms are used, unless cuDNN has no others, which gives a warning on stderr. float32 is computed
// without TF32; 16-bit types use tensor cores if there are any.
void convolve_with_cudnn(const cuda::Queue& queue, cudnn::Handle handle, ConvolutionPass pass,
                         const ConvolutionShape& shape, cudnn::DataType type, void* x, void* weights, void* y);

}  // namespace graph_train
