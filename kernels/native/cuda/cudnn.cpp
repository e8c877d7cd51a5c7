#include "native/cuda/cudnn.h"

#include <dlfcn.h>

#include "native/cuda/emulated_device.h"
#include "native/cuda/oneflow_stream.h"

namespace graph_train::cudnn {

namespace {

constexpr const char* kLibraryName = "libcudnn.so.8";

template<typename F>
void find(void* library, const std::string& symbol, F* function) {
  *reinterpret_cast<void**>(function) = dlsym(library, symbol.c_str());
  CHECK(*function != nullptr) << kLibraryName << " lacks " << symbol;
}

void find_pass(void* library, const std::string& name, Pass* pass) {
  find(library, "cudnnGetConvolution" + name + "Algorithm_v7", &pass->find_algorithms);
  find(library, "cudnnGetConvolution" + name + "WorkspaceSize", &pass->workspace_bytes);
  find(library, "cudnnConvolution" + name, &pass->run);
}

Library open_library() {
  void* library = dlopen(kLibraryName, RTLD_NOW | RTLD_NOLOAD);
  CHECK(library != nullptr) << kLibraryName << " is not loaded, though OneFlow needs it";
  Library l{};
  find(library, "cudnnGetErrorString", &l.error_string);
  find(library, "cudnnCreateTensorDescriptor", &l.create_tensor);
  find(library, "cudnnCreateFilterDescriptor", &l.create_filter);
  find(library, "cudnnCreateConvolutionDescriptor", &l.create_convolution);
  find(library, "cudnnSetTensor4dDescriptor", &l.set_tensor);
  find(library, "cudnnSetFilter4dDescriptor", &l.set_filter);
  find(library, "cudnnSetConvolution2dDescriptor", &l.set_convolution);
  find(library, "cudnnSetConvolutionGroupCount", &l.set_groups);
  find(library, "cudnnSetConvolutionMathType", &l.set_math);
  find(library, "cudnnGetConvolution2dForwardOutputDim", &l.output_size);
  find_pass(library, "Forward", &l.forward);
  find_pass(library, "BackwardData", &l.data_gradient);
  find_pass(library, "BackwardFilter", &l.filter_gradient);
  return l;
}

}  // namespace

const Library& library() {
#ifdef GT_EMULATED_CUDA
  return cuda::emulated_cudnn();
#else
  static const Library opened = open_library();
  return opened;
#endif
}

Handle handle_of(user_op::KernelComputeContext* ctx) {
#ifdef GT_EMULATED_CUDA
  return nullptr;
#else
  return reinterpret_cast<oneflow::ep::CudaStream*>(ctx->stream())->cudnn_handle();
#endif
}

void check(Status status, const char* call) {
  if (status == 0) return;
  LOG(FATAL) << "cuDNN: " << call << ": " << library().error_string(status) << " (" << status << ")";
}

}  // namespace graph_train::cudnn
