// Kernels that a GPU cannot run, or not reliably, each with a fault that the emulation must report.
#include <cstdio>

#include "native/cuda/device.h"

namespace graph_train {

struct NoArgs {
  int unused;
};

GT_BLOCK_KERNEL(sound, NoArgs, 64) {
  GT_SHARED(float, all_of_it, (48 << 10) / sizeof(float));
  all_of_it[threadIdx.x] = warp_sum(1.0f);
}

GT_BLOCK_KERNEL(different_shuffles, NoArgs, 64) {
  if (threadIdx.x == 40) {
    __ballot_sync(0xffffffffu, true);
  } else {
    __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  }
}

GT_BLOCK_KERNEL(divergent_shuffle, NoArgs, 64) {
  if (threadIdx.x < 40) warp_sum(1.0f);
}

GT_BLOCK_KERNEL(partial_mask, NoArgs, 64) { __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }

GT_BLOCK_KERNEL(divergent_barrier, NoArgs, 64) {
  if (threadIdx.x < 40) __syncthreads();
}

GT_KERNEL(undeclared_barrier, NoArgs, 64) { __syncthreads(); }

GT_BLOCK_KERNEL(too_much_shared_memory, NoArgs, 64) {
  GT_SHARED(double, most, 6000);
  GT_SHARED(float, more, 300);
  most[threadIdx.x] = more[threadIdx.x] = 0;
}

GT_KERNEL(too_many_threads, NoArgs, 32) {}

}  // namespace graph_train

int main(int, char** arguments) {
  using namespace graph_train;
  const emulation::Kernel* kernel = emulation::find_kernel(arguments[1]);
  const NoArgs args{};
  emulation::run(*kernel, {1, 1, 1}, {64, 1, 1}, &args, false);
  std::puts("done");
}
