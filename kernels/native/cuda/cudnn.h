// cuDNN's convolutions, found in the library that OneFlow has loaded, cuDNN 8, or in a newer one, whose functions are
// the same; declared here, so that no header of cuDNN is needed (tests/kernels/native/test_cudnn.py compares with those
// of the wheel).
#pragma once

#include <cstddef>

#include "native/common.h"
#include "native/cuda/driver.h"

namespace graph_train::cudnn {

using Status = int;  // 0 is success
constexpr Status kAllocationFailed = 2;
using Handle = void*;
using Descriptor = void*;  // of a tensor, a filter or a convolution

// The values used of cuDNN's enumerations.
enum class DataType : int { kFloat = 0, kHalf = 2, kBfloat16 = 9 };
enum class Format : int { kChannelsLast = 1 };
enum class Mode : int { kCrossCorrelation = 1 };
enum class Math : int { kDefault = 0, kTensorCores = 1, kTensorCoresAllowConversion = 2, kFusedMultiplyAdd = 3 };

// cudnnConvolutionFwdAlgoPerf_t and its equivalents for the gradients, which have the same layout.
struct Performance {
  int algorithm;
  Status status;
  float time;
  size_t memory;
  int deterministic;
  Math math;
  int reserved[3];
};

// One of the three passes, for which cuDNN's declarations are alike: two operands, then the result, (x, w, y), (w, dy,
// dx) or (x, dy, dw).
struct Pass {
  Status (*find_algorithms)(Handle, Descriptor, Descriptor, Descriptor convolution, Descriptor result, int wanted,
                            int* found, Performance* performances);
  Status (*workspace_bytes)(Handle, Descriptor, Descriptor, Descriptor convolution, Descriptor result, int algorithm,
                            size_t* bytes);
  Status (*run)(Handle, const void* alpha, Descriptor, const void*, Descriptor, const void*, Descriptor convolution,
                int algorithm, void* workspace, size_t workspace_bytes, const void* beta, Descriptor, void* result);
};

// The functions that the plugin uses.
struct Library {
  const char* (*error_string)(Status);
  Status (*create_handle)(Handle*);
  Status (*set_stream)(Handle, cuda::Stream);
  Status (*create_tensor)(Descriptor*);
  Status (*create_filter)(Descriptor*);
  Status (*create_convolution)(Descriptor*);
  Status (*set_tensor)(Descriptor, Format, DataType, int n, int c, int h, int w);
  Status (*set_filter)(Descriptor, DataType, Format, int k, int c, int h, int w);
  Status (*set_convolution)(Descriptor, int pad_rows, int pad_columns, int stride_rows, int stride_columns,
                            int dilation_rows, int dilation_columns, Mode, DataType compute_type);
  Status (*set_groups)(Descriptor, int groups);
  Status (*set_math)(Descriptor, Math);
  Status (*output_size)(Descriptor convolution, Descriptor x, Descriptor filter, int* n, int* c, int* h, int* w);
  Pass forward, data_gradient, filter_gradient;
};

// The loaded cuDNN; aborts with a message if there is none.
const Library& library();

// The handle for the stream of the op kernel: OneFlow's, or one of the newer cuDNN.
Handle handle_of(user_op::KernelComputeContext* ctx);

// Ends the process with a message that names the call, unless the status is success.
void check(Status status, const char* call);
#define GT_CUDNN_CHECK(call) ::graph_train::cudnn::check(::graph_train::cudnn::library().call, #call)

}  // namespace graph_train::cudnn
