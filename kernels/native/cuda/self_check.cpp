// The functions of launch.h, for tests without an op that replace libcuda by a recording driver.
#include "native/cuda/launch.h"

namespace graph_train::cuda {

extern "C" GT_EXPORT void graph_train_check_launch(int device, void* stream, const char* kernel,
                                                   const unsigned int* grid, unsigned int threads, const void* args) {
  launch_raw({device, stream}, kernel, {grid[0], grid[1], grid[2]}, threads, args);
}

extern "C" GT_EXPORT void graph_train_check_launch_cooperative(int device, void* stream, const char* kernel,
                                                               int64_t max_blocks, unsigned int threads,
                                                               const void* args) {
  launch_cooperative_raw({device, stream}, kernel, max_blocks, threads, args);
}

extern "C" GT_EXPORT const void* graph_train_check_table(int device, void* stream, const void* table, int64_t bytes) {
  return device_table_raw({device, stream}, table, bytes);
}

extern "C" GT_EXPORT const void* graph_train_check_counters(int device, void* stream) {
  return grid_counters({device, stream});
}

extern "C" GT_EXPORT const void* graph_train_check_workspace(int device, void* stream, int64_t bytes) {
  return workspace({device, stream}, bytes);
}

}  // namespace graph_train::cuda
