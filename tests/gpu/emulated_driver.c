// Stands in for libcuda.so.1: memory is the host's, and kernels run on the emulated device of the plugin whose path is in
// EMULATED_PLUGIN.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Launch)(int device, void* stream, const char* kernel, const unsigned* grid, unsigned threads,
                       const void* args);
typedef void (*LaunchCooperative)(int device, void* stream, const char* kernel, int64_t max_blocks, unsigned threads,
                                  const void* args);

static void* find(const char* symbol) {
  void* plugin = dlopen(getenv("EMULATED_PLUGIN"), RTLD_NOW | RTLD_NOLOAD);
  return plugin == NULL ? NULL : dlsym(plugin, symbol);
}

int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }
int cuGetErrorString(int error, const char** text) {
  *text = "emulated";
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 12040;
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal + 40;
  return 0;
}
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "emulated GPU %d", device - 40);
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 16 ? 2 : 0;
  return device == 40 ? 0 : 101;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(intptr_t)101;
  return device == 40 ? 0 : 101;
}
int cuCtxSetCurrent(void* context) { return context == (void*)(intptr_t)101 ? 0 : 201; }
int cuCtxSynchronize(void) { return 0; }
int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)image;
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = strdup(name);
  return 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
  *blocks = 1;
  return threads > 0 && threads <= 1024 && shared == 0 ? 0 : 1;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  const unsigned grid[3] = {gx, gy, gz};
  if (by != 1 || bz != 1 || shared != 0 || stream != NULL || extra != NULL) return 1;
  ((Launch)find("graph_train_check_launch"))(0, NULL, function, grid, bx, parameters[0]);
  return 0;
}
int cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared, void* stream, void** parameters) {
  if (gx > 2 || gy != 1 || gz != 1 || by != 1 || bz != 1 || shared != 0 || stream != NULL) return 720;
  ((LaunchCooperative)find("graph_train_check_launch_cooperative"))(0, NULL, function, gx, bx, parameters[0]);
  return 0;
}
int cuMemAlloc_v2(unsigned long long* pointer, size_t bytes) {
  *pointer = (unsigned long long)(intptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
  return bytes > 0 ? 0 : 1;
}
int cuMemFree_v2(unsigned long long pointer) {
  free((void*)(intptr_t)pointer);
  return 0;
}
int cuMemcpyHtoD_v2(unsigned long long target, const void* source, size_t bytes) {
  memcpy((void*)(intptr_t)target, source, bytes);
  return 0;
}
int cuMemcpyDtoH_v2(void* target, unsigned long long source, size_t bytes) {
  memcpy(target, (const void*)(intptr_t)source, bytes);
  return 0;
}
int cuEventCreate(void** event, unsigned flags) {
  *event = malloc(1);
  return flags == 0 ? 0 : 1;
}
int cuEventRecord(void* event, void* stream) { return event != NULL && stream == NULL ? 0 : 1; }
int cuEventSynchronize(void* event) { return event != NULL ? 0 : 1; }
int cuEventElapsedTime(float* milliseconds, void* begin, void* end) {
  *milliseconds = 2.5f;
  return begin != end ? 0 : 1;
}
int cuEventDestroy_v2(void* event) {
  free(event);
  return 0;
}
