// CUDA's driver API, loaded at run time, so that the plugin can be built and loaded without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graph_train::cuda {

using Result = int;  // 0 is success
using Device = int;
using Context = void*;
using Module = void*;
using Function = void*;
using Stream = void*;
using Pointer = unsigned long long;  // of the device

// Numbers of CUdevice_attribute.
enum class Attribute : int { kMultiprocessors = 16, kMajor = 75, kMinor = 76 };

// The functions used, named as in cuda.h without the prefix "cu" and the version.
struct Driver {
  Result (*init)(unsigned int flags);
  Result (*get_error_string)(Result error, const char** text);
  Result (*device_get)(Device* device, int ordinal);
  Result (*device_get_attribute)(int* value, int attribute, Device device);
  Result (*primary_context_retain)(Context* context, Device device);
  Result (*context_get_current)(Context* context);
  Result (*context_set_current)(Context context);
  Result (*module_load_data)(Module* module, const void* image);
  Result (*module_get_function)(Function* function, Module module, const char* name);
  Result (*occupancy)(int* blocks, Function function, int threads, size_t shared_bytes);
  Result (*launch_kernel)(Function function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                          unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                          Stream stream, void** parameters, void** extra);
  Result (*launch_cooperative_kernel)(Function function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                      unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                      unsigned int shared_bytes, Stream stream, void** parameters);
  Result (*memory_allocate)(Pointer* pointer, size_t bytes);
  Result (*memory_free)(Pointer pointer);
  Result (*memory_set)(Pointer pointer, unsigned char value, size_t count, Stream stream);
  Result (*memory_copy_to_device)(Pointer target, const void* source, size_t bytes, Stream stream);
  Result (*stream_synchronize)(Stream stream);
};

// The driver of this machine; aborts with a message if there is none. Used by CUDA kernels only.
const Driver& driver();

// Ends the process with a message that names the call, unless the result is success.
void check(Result result, const char* call);
#define GT_CUDA_CHECK(call) ::graph_train::cuda::check(::graph_train::cuda::driver().call, #call)

}  // namespace graph_train::cuda
