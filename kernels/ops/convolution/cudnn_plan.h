// A convolution as cuDNN executes it: descriptors and the algorithm, chosen once for each size and device.
#ifndef GRAPH_TRAIN_KERNELS_CONVOLUTION_CUDNN_PLAN_H_
#define GRAPH_TRAIN_KERNELS_CONVOLUTION_CUDNN_PLAN_H_

#include "native/cuda/cudnn.h"
#include "native/cuda/launch.h"
#include "ops/convolution/convolution.h"

namespace graph_train {

// (B, H, W, C) activations and packed weights, (O, KH, KW, I / groups), all of one type; sums are float32.
struct CudnnDescriptors {
  cudnn::Descriptor x, weights, y, convolution;
};
CudnnDescriptors make_descriptors(const ConvolutionShape& shape, cudnn::DataType type);

// Runs the pass on the stream; pointers as of `convolve`, aligned to 16 bytes, and the batch is not empty. The same inputs
// give the same bits: algorithms whose sums depend on the order of threads are passed over, unless cuDNN has no others,
// which is said on stderr. float32 is computed in float32, not in TF32; the 16-bit types are multiplied by tensor cores
// where there are any.
void convolve_with_cudnn(const cuda::Queue& queue, cudnn::Handle handle, ConvolutionPass pass,
                         const ConvolutionShape& shape, cudnn::DataType type, void* x, void* weights, void* y);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_CONVOLUTION_CUDNN_PLAN_H_
