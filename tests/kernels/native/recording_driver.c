// Stands in for libcuda.so.1 and for a newer cuDNN: does nothing but note what it is asked for, a line each, in the file
// named by RECORD.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAUNCH_SHAPE unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared

typedef struct {
  int device;
  char name[64];
} Thing;  // a module or a function

static __thread intptr_t current = 0;

static int note(const char* format, ...) {
  FILE* file = fopen(getenv("RECORD"), "a");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
  fclose(file);
  return 0;
}

static Thing* thing(int device, const char* name) {
  Thing* made = calloc(1, sizeof(Thing));
  made->device = device;
  strncpy(made->name, name, sizeof(made->name) - 1);
  return made;
}

int cuInit(unsigned flags) { return note("init %u", flags); }
int cuGetErrorString(int error, const char** text) {
  *text = "recorded";
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal + 40;  // a handle need not be the ordinal
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 16 ? 4 : attribute == 75 ? 9 : 0;
  return 0;
}
// The context of device N is N + 101.
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(intptr_t)(device - 40 + 101);
  return note("retain %d", device - 40);
}
int cuCtxGetCurrent(void** context) {
  *context = (void*)current;
  return 0;
}
int cuCtxSetCurrent(void* context) {
  current = (intptr_t)context;
  return note("enter %d", (int)current - 101);
}
int cuModuleLoadData(void** module, const void* image) {
  *module = thing((int)current - 101, image);
  return note("load %s on %d", (const char*)image, (int)current - 101);
}
// Each image holds the kernels whose names start with its own.
int cuModuleGetFunction(void** function, void* module, const char* name) {
  const Thing* from = module;
  if (strncmp(name, from->name, strlen(from->name)) != 0) return 500;
  *function = thing(from->device, name);
  return note("find %s on %d", name, from->device);
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
  *blocks = 2;
  return 0;
}
static int launch(const char* how, const Thing* function, LAUNCH_SHAPE, void* stream, void** parameters) {
  int64_t number;
  memcpy(&number, parameters[0], sizeof(number));
  return note("%s %s on %d in %d: %u,%u,%u x %u,%u,%u shared %u stream %d args %lld", how, function->name,
              function->device, (int)current - 101, gx, gy, gz, bx, by, bz, shared, (int)(intptr_t)stream,
              (long long)number);
}
int cuLaunchKernel(void* function, LAUNCH_SHAPE, void* stream, void** parameters, void** extra) {
  return launch("launch", function, gx, gy, gz, bx, by, bz, shared, stream, parameters);
}
int cuLaunchCooperativeKernel(void* function, LAUNCH_SHAPE, void* stream, void** parameters) {
  return launch("together", function, gx, gy, gz, bx, by, bz, shared, stream, parameters);
}
int cuMemAlloc_v2(unsigned long long* pointer, size_t bytes) {
  *pointer = (unsigned long long)(intptr_t)malloc(bytes);
  return note("allocate %zu on %d", bytes, (int)current - 101);
}
int cuMemFree_v2(unsigned long long pointer) {
  free((void*)(intptr_t)pointer);
  return note("free");
}
int cuMemsetD8Async(unsigned long long pointer, unsigned char value, size_t count, void* stream) {
  return note("set %zu to %d stream %d", count, value, (int)(intptr_t)stream);
}
int cuMemcpyHtoDAsync_v2(unsigned long long target, const void* source, size_t bytes, void* stream) {
  memcpy((void*)(intptr_t)target, source, bytes);
  return note("copy %zu stream %d", bytes, (int)(intptr_t)stream);
}
int cuStreamSynchronize(void* stream) { return note("wait stream %d", (int)(intptr_t)stream); }

int cudnnCreate(void** handle) {
  *handle = thing((int)current - 101, "handle");
  return note("create a handle on %d", (int)current - 101);
}
int cudnnSetStream(void* handle, void* stream) {
  return note("handle on %d: stream %d", ((Thing*)handle)->device, (int)(intptr_t)stream);
}
const char* cudnnGetErrorString(int status) { return "recorded"; }
int cudnnCreateTensorDescriptor(void** descriptor) { return note("create a tensor"); }
int cudnnCreateFilterDescriptor(void** descriptor) { return note("create a filter"); }
int cudnnCreateConvolutionDescriptor(void** descriptor) { return note("create a convolution"); }
int cudnnGetConvolution2dForwardOutputDim(void* convolution, void* x, void* filter, int* n, int* c, int* h, int* w) {
  *n = 1, *c = 2, *h = 3, *w = 4;
  return 0;
}
#define SILENT(name) \
  int name(void) { return 0; }
SILENT(cudnnSetTensor4dDescriptor)
SILENT(cudnnSetFilter4dDescriptor)
SILENT(cudnnSetConvolution2dDescriptor)
SILENT(cudnnSetConvolutionGroupCount)
SILENT(cudnnSetConvolutionMathType)
#define PASS(name)                                 \
  SILENT(cudnnGetConvolution##name##Algorithm_v7)  \
  SILENT(cudnnGetConvolution##name##WorkspaceSize) \
  SILENT(cudnnConvolution##name)
PASS(Forward)
PASS(BackwardData)
PASS(BackwardFilter)
