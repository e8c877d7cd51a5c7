// Each thread makes one pixel: planes are read in a row, channels of a pixel are written together.
#include "native/cuda/device.h"
#include "ops/pixels/pixels.h"

namespace graph_train {

template<typename T>
GT_DEVICE void pixels(const PixelArgs& args) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pixel >= args.batch * args.area) return;
  const uint8_t* from = args.images + pixel / args.area * args.channels * args.area + pixel % args.area;
  T* to = static_cast<T*>(args.out) + pixel * args.channels;
  for (int64_t c = 0; c < args.channels; ++c) to[c] = from_float<T>(static_cast<float>(from[c * args.area]) / kPixelScale);
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, pixels, PixelArgs, kPixelThreads)

}  // namespace graph_train
