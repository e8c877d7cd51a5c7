// Resamples regions of decoded images and writes them to planes.
// Results are bitwise equal to the reference in kernels/ops/drawing/function.py: weights are rounded to 11 bits, all
// sums are exact integers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "native/common.h"

namespace {

enum Filter : int64_t { kLinear, kTriangle, kArea };  // in the order of kernels/ops/drawing/function.py

constexpr int kBits = 11;                        // of a weight: 8 + 11 + 11 bits fit a signed 32-bit sum
constexpr int32_t kHalf = 1 << (2 * kBits - 1);  // rounds to the nearest

typedef int32_t Pixel __attribute__((vector_size(16)));  // red, green, blue, and the next byte in memory
typedef int32_t UnalignedPixel __attribute__((vector_size(16), aligned(4), may_alias));

// The source pixels of each target pixel along one axis: `taps` neighbours from `start`, with weights whose sum is
// 2^11.
struct Axis {
  int taps = 0;
  std::vector<int32_t> start;
  std::vector<int32_t> weight;  // (target, taps)
};

// `source`: number of source pixels; [begin, end): the part that is resampled to `target` pixels, mirrored if begin >
// end. Compiled for plain x86-64: without fused multiply-adds, the doubles are equal to the reference's.
__attribute__((noinline)) Axis make_axis(int64_t source, double begin, double end, int64_t target, int64_t filter) {
  const double step = (end - begin) / static_cast<double>(target);
  const double wide = std::max(1.0, std::fabs(step));
  const double reach = filter == kTriangle ? wide : filter == kArea ? (wide + 1.0) / 2.0 : 1.0;
  const double slope = filter == kArea ? 1.0 : reach;
  const int64_t most = static_cast<int64_t>(std::ceil(2.0 * reach));
  Axis axis;
  axis.taps = static_cast<int>(std::min(most, source));
  axis.start.resize(target);
  axis.weight.assign(target * axis.taps, 0);
  std::vector<double> raw_weights(axis.taps);
  for (int64_t to = 0; to < target; ++to) {
    const double centre = begin + (static_cast<double>(to) + 0.5) * step;
    const int64_t first = static_cast<int64_t>(std::ceil(centre - 0.5 - reach));
    const int64_t start = std::min(std::max<int64_t>(first, 0), source - axis.taps);
    std::fill(raw_weights.begin(), raw_weights.end(), 0.0);
    double total = 0.0;
    for (int64_t k = 0; k < most; ++k) {
      const double height = (reach - std::fabs(static_cast<double>(first + k) + 0.5 - centre)) / slope;
      const double raw_weight = std::min(std::max(height, 0.0), 1.0);
      raw_weights[std::min(std::max<int64_t>(first + k, start), start + axis.taps - 1) - start] += raw_weight;
      total += raw_weight;
    }
    axis.start[to] = static_cast<int32_t>(start);
    int32_t* weight = axis.weight.data() + to * axis.taps;
    int32_t remainder = 1 << kBits;
    int largest = 0;
    for (int k = 0; k < axis.taps; ++k) {
      weight[k] = static_cast<int32_t>(std::floor(raw_weights[k] / total * (1 << kBits) + 0.5));
      remainder -= weight[k];
      if (weight[k] > weight[largest]) largest = k;
    }
    weight[largest] += remainder;
  }
  return axis;
}

// The weighted sum of `taps` source rows, over `count` bytes.
GT_VECTOR void sum_rows(const uint8_t* rows, int64_t stride, const int32_t* weight, int taps, int64_t count,
                        int32_t* __restrict sum) {
  if (taps == 2) {
    const uint8_t* other = rows + stride;
    const int32_t a = weight[0], b = weight[1];
    for (int64_t i = 0; i < count; ++i) sum[i] = a * rows[i] + b * other[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i) sum[i] = weight[0] * rows[i];
  for (int k = 1; k < taps; ++k) {
    const uint8_t* row = rows + k * stride;
    const int32_t w = weight[k];
    for (int64_t i = 0; i < count; ++i) sum[i] += w * row[i];
  }
}

template<int kTaps>
GT_INLINE void sum_columns_of(const int32_t* sum, const Axis& axis, int64_t count, int32_t* __restrict out) {
  const int taps = kTaps ? kTaps : axis.taps;
  for (int64_t x = 0; x < count; ++x) {
    const int32_t* from = sum + 3 * axis.start[x];
    const int32_t* weight = axis.weight.data() + x * taps;
    Pixel total = Pixel{} + kHalf;
    for (int k = 0; k < taps; ++k) total += *reinterpret_cast<const UnalignedPixel*>(from + 3 * k) * weight[k];
    *reinterpret_cast<UnalignedPixel*>(out + 4 * x) = total >> (2 * kBits);
  }
}

// Resamples the summed row along the columns and writes it to a row of the three planes.
GT_VECTOR void sum_columns(const int32_t* sum, const Axis& axis, int64_t count, int32_t* __restrict pixels,
                           uint8_t* __restrict out, int64_t plane) {
  switch (axis.taps) {
    case 2: sum_columns_of<2>(sum, axis, count, pixels); break;
    case 4: sum_columns_of<4>(sum, axis, count, pixels); break;
    default: sum_columns_of<0>(sum, axis, count, pixels);
  }
  for (int64_t x = 0; x < count; ++x) {
    out[x] = static_cast<uint8_t>(pixels[4 * x]);
    out[plane + x] = static_cast<uint8_t>(pixels[4 * x + 1]);
    out[2 * plane + x] = static_cast<uint8_t>(pixels[4 * x + 2]);
  }
}

}  // namespace

// Resamples a region (top, left, bottom, right), in pixels, of `crop`, (height, width, 3) with rows `stride` bytes
// apart, to `out`: three planes of rows x columns pixels, `plane` bytes apart, with rows `out_stride` bytes apart.
extern "C" GT_EXPORT void graph_train_draw_region(const uint8_t* crop, int64_t height, int64_t width, int64_t stride,
                                                  const double* region, int64_t filter, int64_t rows, int64_t columns,
                                                  uint8_t* out, int64_t plane, int64_t out_stride) {
  const Axis down = make_axis(height, region[0], region[2], rows, filter);
  const Axis across = make_axis(width, region[1], region[3], columns, filter);
  // One more element, since a pixel is read as four numbers.
  std::vector<int32_t> sum(3 * width + 1, 0), pixels(4 * columns);
  for (int64_t y = 0; y < rows; ++y) {
    sum_rows(crop + down.start[y] * stride, stride, down.weight.data() + y * down.taps, down.taps, 3 * width,
             sum.data());
    sum_columns(sum.data(), across, columns, pixels.data(), out + y * out_stride, plane);
  }
}
