#include "native/cuda/cudnn.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "native/cuda/emulated_device.h"
#include "native/cuda/launch.h"
#include "native/cuda/oneflow_stream.h"

namespace graph_train::cudnn {

namespace {

constexpr const char* kOneFlows = "libcudnn.so.8";

// The path of a newer cuDNN than OneFlow's; empty for OneFlow's.
std::string& newer() {
  static auto* path = new std::string;
  return *path;
}

template<typename F>
void find(void* library, const std::string& symbol, F* function) {
  *reinterpret_cast<void**>(function) = dlsym(library, symbol.c_str());
  CHECK(*function != nullptr) << (newer().empty() ? kOneFlows : newer()) << " lacks " << symbol;
}

void find_pass(void* library, const std::string& name, Pass* pass) {
  find(library, "cudnnGetConvolution" + name + "Algorithm_v7", &pass->find_algorithms);
  find(library, "cudnnGetConvolution" + name + "WorkspaceSize", &pass->workspace_bytes);
  find(library, "cudnnConvolution" + name, &pass->run);
}

Library open_library() {
  // Both have the same names; a deep binding keeps those of the newer one apart.
  void* library = newer().empty() ? dlopen(kOneFlows, RTLD_NOW | RTLD_NOLOAD)
                                  : dlopen(newer().c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  CHECK(library != nullptr) << (newer().empty() ? "libcudnn.so.8 is not loaded, though OneFlow needs it" : dlerror());
  Library l{};
  find(library, "cudnnGetErrorString", &l.error_string);
  find(library, "cudnnCreate", &l.create_handle);
  find(library, "cudnnSetStream", &l.set_stream);
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

// OneFlow's handles belong to its cuDNN.
Handle own_handle(const cuda::Queue& queue) {
  static auto* of_streams = new std::map<std::pair<int, cuda::Stream>, Handle>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  Handle& handle = (*of_streams)[{queue.device, queue.stream}];
  if (handle == nullptr) {
    cuda::make_current(queue.device);
    GT_CUDNN_CHECK(create_handle(&handle));
    GT_CUDNN_CHECK(set_stream(handle, queue.stream));
  }
  return handle;
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
  if (!newer().empty()) return own_handle(cuda::queue_of(ctx));
  return reinterpret_cast<oneflow::ep::CudaStream*>(ctx->stream())->cudnn_handle();
#endif
}

// Sets the path of a newer cuDNN than OneFlow's; call it before the first convolution.
extern "C" GT_EXPORT void graph_train_cudnn_use(const char* path) { newer() = path; }

// For tests: the handle of the newer cuDNN for a stream.
extern "C" GT_EXPORT void* graph_train_check_cudnn_handle(int device, void* stream) {
  return own_handle({device, stream});
}

void check(Status status, const char* call) {
  if (status == 0) return;
  LOG(FATAL) << "cuDNN: " << call << ": " << library().error_string(status) << " (" << status << ")";
}

}  // namespace graph_train::cudnn
