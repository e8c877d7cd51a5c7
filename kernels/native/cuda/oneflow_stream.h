// OneFlow's CUDA stream, declared here: the wheel's header of this class needs CUDA's headers.
#pragma once

struct CUstream_st;
struct cudnnContext;

namespace oneflow::ep {

// Only what is called; the wheel exports both.
class CudaStream {
 public:
  CUstream_st* cuda_stream() const;
  cudnnContext* cudnn_handle() const;
};

}  // namespace oneflow::ep
