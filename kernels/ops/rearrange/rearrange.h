// Source indices of space-to-depth and zero padding of (B, H, W, C) activations, shared by CPU and CUDA kernels, and
// arguments of the CUDA kernels.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kRearrangeThreads = 256;

// Of the activation with four times the channels; its rows are those of all images together.
struct DepthArgs {
  const void* in;
  void* out;
  int64_t rows, columns, channels;  // channels of the other activation
};

// A pixel of the deep activation holds a patch of 2 x 2: the left column from top to bottom, then the right one.
GT_HOST_DEVICE int64_t pixel_of_patch(const DepthArgs& args, int64_t row, int64_t column, int64_t corner) {
  return (2 * row + corner % 2) * 2 * args.columns + 2 * column + corner / 2;
}

// `large` is the activation with the border.
struct PadArgs {
  const void* in;
  void* out;
  int64_t images, rows, columns, channels;
  int64_t left, top, large_rows, large_columns;
};

}  // namespace graph_train
