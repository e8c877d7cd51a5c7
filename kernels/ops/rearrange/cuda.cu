// Space-to-depth, zero padding and their inverses; one thread per element of the result.
#include "native/cuda/device.h"
#include "ops/rearrange/rearrange.h"

namespace graph_train {

GT_DEVICE int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

template<typename T>
GT_DEVICE void space_to_depth(const DepthArgs& args) {
  const int64_t index = thread_index();
  if (index >= args.rows * args.columns * 4 * args.channels) return;
  const int64_t patch = index / args.channels, channel = index - patch * args.channels;
  const int64_t pixel = patch / 4, row = pixel / args.columns;
  const int64_t from = pixel_of_patch(args, row, pixel - row * args.columns, patch - 4 * pixel);
  static_cast<T*>(args.out)[index] = static_cast<const T*>(args.in)[from * args.channels + channel];
}

template<typename T>
GT_DEVICE void depth_to_space(const DepthArgs& args) {
  const int64_t index = thread_index();
  if (index >= args.rows * args.columns * 4 * args.channels) return;
  const int64_t pixel = index / args.channels, channel = index - pixel * args.channels;
  const int64_t line = pixel / (2 * args.columns), column = pixel - line * 2 * args.columns;
  const int64_t corner = column % 2 * 2 + line % 2;
  const int64_t from = ((line / 2 * args.columns + column / 2) * 4 + corner) * args.channels + channel;
  static_cast<T*>(args.out)[index] = static_cast<const T*>(args.in)[from];
}

template<typename T>
GT_DEVICE void zero_pad(const PadArgs& args) {
  const int64_t index = thread_index();
  if (index >= args.images * args.large_rows * args.large_columns * args.channels) return;
  const int64_t pixel = index / args.channels, channel = index - pixel * args.channels;
  const int64_t line = pixel / args.large_columns, column = pixel - line * args.large_columns - args.left;
  const int64_t image = line / args.large_rows, row = line - image * args.large_rows - args.top;
  const bool inside = row >= 0 && row < args.rows && column >= 0 && column < args.columns;
  const int64_t from = ((image * args.rows + row) * args.columns + column) * args.channels + channel;
  static_cast<T*>(args.out)[index] = inside ? static_cast<const T*>(args.in)[from] : T{};
}

template<typename T>
GT_DEVICE void crop(const PadArgs& args) {
  const int64_t index = thread_index();
  if (index >= args.images * args.rows * args.columns * args.channels) return;
  const int64_t pixel = index / args.channels, channel = index - pixel * args.channels;
  const int64_t line = pixel / args.columns, column = pixel - line * args.columns + args.left;
  const int64_t image = line / args.rows, row = line - image * args.rows + args.top;
  const int64_t from = ((image * args.large_rows + row) * args.large_columns + column) * args.channels + channel;
  static_cast<T*>(args.out)[index] = static_cast<const T*>(args.in)[from];
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, space_to_depth, DepthArgs, kRearrangeThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, depth_to_space, DepthArgs, kRearrangeThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, zero_pad, PadArgs, kRearrangeThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, crop, PadArgs, kRearrangeThreads)

}  // namespace graph_train
