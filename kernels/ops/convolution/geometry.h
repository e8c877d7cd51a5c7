// Sizes of one of our convolution ops, from its tensors and attributes; shared by CPU and CUDA kernels.
#pragma once

#include <vector>

#include "ops/convolution/convolution.h"

namespace graph_train {

// INTEGERS of the ops: stride, padding, dilation (rows, columns each), groups, 1 if weights are packed.
enum ConvolutionInteger {
  kStrideRows,
  kStrideColumns,
  kPadRows,
  kPadColumns,
  kDilationRows,
  kDilationColumns,
  kGroups,
  kPacked
};

// x (B, H, W, I); weights (O, I / groups, KH, KW) float, or packed (O, KH, KW, I / groups) in the type of x.
template<typename Dimensions>
ConvolutionShape shape_of(const std::vector<int64_t>& integers, const Dimensions& x, const Dimensions& weight) {
  const bool packed = integers.at(kPacked) != 0;
  ConvolutionShape s{};
  s.batch = x.At(0);
  s.in_height = x.At(1);
  s.in_width = x.At(2);
  s.in_channels = x.At(3);
  s.out_channels = weight.At(0);
  s.kernel_height = weight.At(packed ? 1 : 2);
  s.kernel_width = weight.At(packed ? 2 : 3);
  s.stride_height = integers.at(kStrideRows);
  s.stride_width = integers.at(kStrideColumns);
  s.pad_top = integers.at(kPadRows);
  s.pad_left = integers.at(kPadColumns);
  s.dilation_height = integers.at(kDilationRows);
  s.dilation_width = integers.at(kDilationColumns);
  s.groups = integers.at(kGroups);
  s.out_height = (s.in_height + 2 * s.pad_top - s.dilation_height * (s.kernel_height - 1) - 1) / s.stride_height + 1;
  s.out_width = (s.in_width + 2 * s.pad_left - s.dilation_width * (s.kernel_width - 1) - 1) / s.stride_width + 1;
  s.channels_last = 1;
  s.weights_channels_last = packed;
  return s;
}

}  // namespace graph_train
