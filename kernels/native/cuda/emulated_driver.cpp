#include <atomic>
#include <cstdlib>
#include <cstring>

#include "native/common.h"
#include "native/cuda/emulated_device.h"
#include "native/cuda/emulation.h"

#ifdef GT_EMULATED_CUDA

namespace graph_train::cuda {

namespace {

// More than one, so that blocks have to wait for each other; few, so that this stays fast. Tests may require more.
std::atomic<int> number_of_multiprocessors{2};

char context, module_image;

Result succeed_int(unsigned int) { return 0; }

Result error_string(Result, const char** text) {
  *text = "emulated device";
  return 0;
}

Result device_get(Device* device, int ordinal) {
  *device = ordinal;
  return 0;
}

Result attribute(int* value, int which, Device) {
  switch (static_cast<Attribute>(which)) {
    case Attribute::kMultiprocessors: *value = number_of_multiprocessors; return 0;
    case Attribute::kMajor: *value = 9; return 0;
    case Attribute::kMinor: *value = 0; return 0;
  }
  return 1;
}

Result retain(Context* made, Device) {
  *made = &context;
  return 0;
}

Result get_current(Context* current) {
  *current = &context;
  return 0;
}

Result set_current(Context) { return 0; }

Result load(Module* module, const void*) {
  *module = &module_image;
  return 0;
}

Result get_function(Function* function, Module, const char* name) {
  const emulation::Kernel* found = emulation::find_kernel(name);
  *function = const_cast<emulation::Kernel*>(found);
  return found == nullptr ? 500 : 0;  // CUDA_ERROR_NOT_FOUND
}

Result occupancy(int* blocks, Function, int, size_t) {
  *blocks = 1;
  return 0;
}

Result run(bool together, Function function, emulation::Dimensions grid, emulation::Dimensions block,
           void** parameters) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) return 1;  // INVALID_VALUE
  emulation::run(*static_cast<emulation::Kernel*>(function), grid, block, parameters[0], together);
  return 0;
}

Result launch(Function function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by,
              unsigned int bz, unsigned int, Stream, void** parameters, void**) {
  return run(false, function, {gx, gy, gz}, {bx, by, bz}, parameters);
}

Result launch_cooperative(Function function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                          unsigned int by, unsigned int bz, unsigned int, Stream, void** parameters) {
  return run(true, function, {gx, gy, gz}, {bx, by, bz}, parameters);
}

Result allocate(Pointer* pointer, size_t bytes) {
  if (bytes == 0) return 1;               // INVALID_VALUE
  if (bytes > size_t{1} << 38) return 2;  // CUDA_ERROR_OUT_OF_MEMORY, even where the system overcommits
  *pointer = reinterpret_cast<Pointer>(std::malloc(bytes));
  return *pointer == 0 ? 2 : 0;
}

Result release(Pointer pointer) {
  std::free(reinterpret_cast<void*>(pointer));
  return 0;
}

Result set(Pointer pointer, unsigned char value, size_t count, Stream) {
  std::memset(reinterpret_cast<void*>(pointer), value, count);
  return 0;
}

Result copy(Pointer target, const void* source, size_t bytes, Stream) {
  std::memcpy(reinterpret_cast<void*>(target), source, bytes);
  return 0;
}

Result synchronize(Stream) { return 0; }

}  // namespace

const Driver& emulated_driver() {
  static const Driver table{succeed_int, error_string, device_get,   attribute, retain,     get_current,
                            set_current, load,         get_function, occupancy, launch,     launch_cooperative,
                            allocate,    release,      set,          copy,      synchronize};
  return table;
}

// Sets the number of multiprocessors, each with room for one block of a cooperative launch; call it before the first.
extern "C" GT_EXPORT void graph_train_emulated_multiprocessors(int number) { number_of_multiprocessors = number; }

}  // namespace graph_train::cuda

#endif  // GT_EMULATED_CUDA
