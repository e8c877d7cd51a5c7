// An emulated CUDA device: driver and cuDNN functions executed on the CPU, for tests. Only the build for
// --kernels emulated-cuda contains it.
#pragma once

#include "native/cuda/cudnn.h"
#include "native/cuda/driver.h"

namespace graph_train::cuda {

const Driver& emulated_driver();
const cudnn::Library& emulated_cudnn();

}  // namespace graph_train::cuda
