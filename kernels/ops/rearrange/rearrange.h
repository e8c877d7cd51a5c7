// Where the numbers of (B, H, W, C) activations come from when pixels become channels, and when a border of zeros is put
// around them; shared by the CPU's and the CUDA kernels, with arguments of the latter.
#ifndef GRAPH_TRAIN_KERNELS_REARRANGE_H_
#define GRAPH_TRAIN_KERNELS_REARRANGE_H_

#include "native/host_device.h"

namespace graph_train {

constexpr int kRearrangeThreads = 256;

// Of the activation that has four times the channels; its rows are those of all images together.
struct DepthArgs {
  const void* in;
  void* out;
  int64_t rows, columns, channels;  // channels of the other one
};

// A pixel of the deep activation holds a patch of 2 x 2: the left column from top to bottom, then the right one.
GT_HOST_DEVICE int64_t pixel_of_patch(const DepthArgs& args, int64_t row, int64_t column, int64_t corner) {
  return (2 * row + corner % 2) * 2 * args.columns + 2 * column + corner / 2;
}

// `large` is what has the border.
struct PadArgs {
  const void* in;
  void* out;
  int64_t images, rows, columns, channels;
  int64_t left, top, large_rows, large_columns;
};

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_REARRANGE_H_
