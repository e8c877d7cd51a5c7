#include "native/cuda/driver.h"

#include <dlfcn.h>

#include "native/common.h"
#include "native/cuda/emulated_device.h"

namespace graph_train::cuda {

namespace {

// File name of the driver library; tests replace it by a recording one before the first call.
std::string& library_name() {
  static std::string name = "libcuda.so.1";
  return name;
}

template<typename F>
void find(void* library, const char* symbol, F* function) {
  *reinterpret_cast<void**>(function) = dlsym(library, symbol);
  CHECK(*function != nullptr) << "the NVIDIA driver lacks " << symbol << ": it is older than CUDA 11; update it";
}

Driver open_driver() {
  void* library = dlopen(library_name().c_str(), RTLD_NOW | RTLD_LOCAL);
  CHECK(library != nullptr) << "the NVIDIA driver is not installed: " << dlerror();
  Driver d{};
  find(library, "cuInit", &d.init);
  find(library, "cuGetErrorString", &d.get_error_string);
  find(library, "cuDeviceGet", &d.device_get);
  find(library, "cuDeviceGetAttribute", &d.device_get_attribute);
  find(library, "cuDevicePrimaryCtxRetain", &d.primary_context_retain);
  find(library, "cuCtxGetCurrent", &d.context_get_current);
  find(library, "cuCtxSetCurrent", &d.context_set_current);
  find(library, "cuModuleLoadData", &d.module_load_data);
  find(library, "cuModuleGetFunction", &d.module_get_function);
  find(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", &d.occupancy);
  find(library, "cuLaunchKernel", &d.launch_kernel);
  find(library, "cuLaunchCooperativeKernel", &d.launch_cooperative_kernel);
  find(library, "cuMemAlloc_v2", &d.memory_allocate);
  find(library, "cuMemFree_v2", &d.memory_free);
  find(library, "cuMemsetD8Async", &d.memory_set);
  find(library, "cuMemcpyHtoDAsync_v2", &d.memory_copy_to_device);
  find(library, "cuStreamSynchronize", &d.stream_synchronize);
  const Result started = d.init(0);
  CHECK(started == 0) << "cuInit failed with error " << started;
  return d;
}

}  // namespace

const Driver& driver() {
#ifdef GT_EMULATED_CUDA
  return emulated_driver();
#else
  static const Driver opened = open_driver();
  return opened;
#endif
}

void check(Result result, const char* call) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().get_error_string(result, &text);
  LOG(FATAL) << "CUDA: " << call << ": " << (text == nullptr ? "unknown error" : text) << " (" << result << ")";
}

// For tests: loads another library in place of libcuda.so.1; call it before the first use.
extern "C" GT_EXPORT void graph_train_cuda_library(const char* path) { library_name() = path; }

}  // namespace graph_train::cuda
