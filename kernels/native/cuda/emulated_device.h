// An emulated CUDA device: driver and cuDNN functions executed on the CPU, for tests. Only the build for
// --kernels emulated-cuda holds it.
#ifndef GRAPH_TRAIN_KERNELS_CUDA_EMULATED_DEVICE_H_
#define GRAPH_TRAIN_KERNELS_CUDA_EMULATED_DEVICE_H_

#include "native/cuda/cudnn.h"
#include "native/cuda/driver.h"

namespace graph_train::cuda {

const Driver& emulated_driver();
const cudnn::Library& emulated_cudnn();

}  // namespace graph_train::cuda

#endif  // GRAPH_TRAIN_KERNELS_CUDA_EMULATED_DEVICE_H_
