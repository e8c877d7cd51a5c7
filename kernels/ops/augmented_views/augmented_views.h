// Views of test-time augmentation: arithmetic shared by CPU and CUDA kernels, and arguments of the CUDA kernels.
// Reference: graph_train/detection/augmented_views.py.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kViewThreads = 256;
constexpr int kMaxViews = 8;
constexpr float kMaxPixel = 255.0f;

// Sizes in pixels of the image (rows, columns), of the scaled image, and of the view, which has a border right and
// below.
struct ViewArgs {
  const uint8_t* images;  // (planes, rows, columns)
  float* out;             // (planes, out_rows, out_columns)
  int64_t planes, rows, columns, scaled_rows, scaled_columns, out_rows, out_columns;
  float border;
  int32_t mirrored;  // left to right, before it is scaled
};

// The two source pixels of a pixel of the scaled image, and the weight of the second.
struct Neighbours {
  int64_t first, second;
  float weight;
};

// Pixel centres are half a pixel from their corners, as in PyTorch's `interpolate` with `align_corners=False`.
GT_HOST_DEVICE Neighbours neighbours_of(int64_t place, int64_t size, int64_t scaled) {
  const float ratio = static_cast<float>(size) / static_cast<float>(scaled);
  float source = (static_cast<float>(place) + 0.5f) * ratio - 0.5f;
  if (source < 0.0f) source = 0.0f;
  auto first = static_cast<int64_t>(source);
  if (first > size - 1) first = size - 1;
  return {first, first < size - 1 ? first + 1 : first, source - static_cast<float>(first)};
}

// The same along a row, which may be mirrored.
GT_HOST_DEVICE Neighbours columns_of(const ViewArgs& args, int64_t column) {
  const Neighbours own = neighbours_of(column, args.columns, args.scaled_columns);
  if (args.mirrored == 0) return own;
  return {args.columns - 1 - own.first, args.columns - 1 - own.second, own.weight};
}

GT_HOST_DEVICE float interpolate(const uint8_t* row, const Neighbours& columns) {
  return (1.0f - columns.weight) * static_cast<float>(row[columns.first])
         + columns.weight * static_cast<float>(row[columns.second]);
}

// A value in [0, 1], interpolated between two rows of the image.
GT_HOST_DEVICE float view_value(const uint8_t* upper, const uint8_t* lower, float lower_weight,
                                const Neighbours& columns) {
  return ((1.0f - lower_weight) * interpolate(upper, columns) + lower_weight * interpolate(lower, columns)) / kMaxPixel;
}

// The predictions of one view; the rows [first, first + kept) are used.
struct ViewRows {
  const float* rows;  // (images, number, numbers)
  int64_t number, first, kept;
  int64_t place;  // of its first row among the joined ones
  float scale;
  int32_t mirrored;
};

struct JoinArgs {
  ViewRows views[kMaxViews];
  float* out;  // (images, joined, numbers)
  int64_t images, joined, numbers;
  float width;  // of the image, px
  int32_t view_count;
};

// Converts one value of a prediction from px of the view to px of the image. The first four are centre, width and
// height.
GT_HOST_DEVICE float value_in_image(const ViewRows& view, float width, int64_t index, float value) {
  if (index >= 4) return value;
  const float scaled = value / view.scale;
  return index == 0 && view.mirrored != 0 ? width - scaled : scaled;
}

}  // namespace graph_train
