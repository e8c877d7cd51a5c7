// Conversion of images to the first activation; a thread processes consecutive pixels.
#include "native/cuda/device.h"
#include "ops/pixels/pixels.h"

namespace graph_train {

struct alignas(8) PixelAccess {
  uint8_t values[kPixelsPerThread];
};

// Writes values in [0, 1] to every third element of `to`.
GT_DEVICE void load_pixels(const uint8_t* from, int number, float* to) {
  if (number == kPixelsPerThread && reinterpret_cast<uint64_t>(from) % sizeof(PixelAccess) == 0) {
    const PixelAccess access = *reinterpret_cast<const PixelAccess*>(from);
    for (int i = 0; i < kPixelsPerThread; ++i) to[3 * i] = static_cast<float>(access.values[i]) / kMaxPixel;
    return;
  }
  for (int i = 0; i < kPixelsPerThread; ++i) {
    if (i < number) to[3 * i] = static_cast<float>(from[i]) / kMaxPixel;
  }
}

GT_DEVICE void load_pixels(const float* from, int number, float* to) {
  float values[kPixelsPerThread] = {};
  load_floats<kPixelsPerThread>(from, number, values);
  for (int i = 0; i < kPixelsPerThread; ++i) to[3 * i] = values[i];
}

template<typename Pixel, typename T>
GT_DEVICE void convert_pixels(const PixelArgs& args) {
  const int64_t groups = (args.area + kPixelsPerThread - 1) / kPixelsPerThread;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= args.number * groups) return;
  const int64_t image = item / groups;
  const int64_t first = (item - image * groups) * kPixelsPerThread;
  const int64_t left = args.area - first;
  const int number = left < kPixelsPerThread ? static_cast<int>(left) : kPixelsPerThread;
  float values[3 * kPixelsPerThread] = {};
  for (int c = 0; c < 3; ++c) {
    load_pixels(static_cast<const Pixel*>(args.images) + (image * 3 + c) * args.area + first, number, values + c);
  }
  store_floats<3 * kPixelsPerThread>(static_cast<T*>(args.out) + (image * args.area + first) * 3, 3 * number, values);
}

template<typename T>
GT_DEVICE void pixels(const PixelArgs& args) {
  convert_pixels<uint8_t, T>(args);
}

template<typename T>
GT_DEVICE void float_pixels(const PixelArgs& args) {
  convert_pixels<float, T>(args);
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, pixels, PixelArgs, kPixelThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, float_pixels, PixelArgs, kPixelThreads)

}  // namespace graph_train
