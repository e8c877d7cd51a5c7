// Colour augmentation of 8-bit images: maps hue, saturation and value by look-up tables, and converts interleaved
// pixels to planes. Results are bitwise equal to the reference in pipelines/pixels/colour.py for every instruction set,
// since it uses integers, and floats whose rounding does not depend on fused multiply-add.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "native/common.h"

namespace {

constexpr int kChunk = 512;        // pixels processed at a time: all temporaries stay in the L1 cache
constexpr int kFraction = 12;      // bits of the reciprocals, as in OpenCV's 8-bit conversion
constexpr int kFullChroma = 7650;  // 255 levels of saturation times 30 levels of hue in a sector

struct Tables {
  int32_t hue[256], saturation[256], value[256];
};

Tables make_tables(const uint8_t* given) {
  Tables tables;
  for (int i = 0; i < 256; ++i) {
    tables.hue[i] = given[i];
    tables.saturation[i] = given[256 + i];
    tables.value[i] = given[512 + i];
  }
  return tables;
}

GT_INLINE uint8_t channel(int32_t hue, int32_t saturation, int32_t value, int32_t offset) {
  int32_t position = hue + offset;
  position = position >= 180 ? position - 180 : position;
  const int32_t fall = std::min(std::max(std::min(position, 120 - position), 0), 30);
  // The offset of half a unit keeps values away from the boundaries between levels, so that rounding cannot cross one.
  const float shifted = static_cast<float>(value * (kFullChroma - saturation * fall) + kFullChroma / 2) + 0.5f;
  return static_cast<uint8_t>(static_cast<int32_t>(shifted * (1.0f / kFullChroma)));
}

// factor / divisor in fixed point with 12 bits; float32 rounds like the exact quotient for every divisor from 1 to 255.
GT_INLINE int32_t reciprocal(int32_t factor, int32_t divisor) {
  const float numerator = static_cast<float>(factor << kFraction);
  return static_cast<int32_t>(std::nearbyintf(numerator / static_cast<float>(std::max(divisor, 1))));
}

struct Chunk {
  int32_t red[kChunk], green[kChunk], blue[kChunk];
};

// Channel c of pixel i is in[c * channel + i * kStep].
template<int kStep>
GT_INLINE void read_chunk(const uint8_t* in, int64_t channel, int count, Chunk& to) {
  for (int i = 0; i < count; ++i) {
    to.red[i] = in[kStep * i];
    to.green[i] = in[kStep * i + channel];
    to.blue[i] = in[kStep * i + 2 * channel];
  }
}

GT_INLINE void adjust_chunk(const Chunk& in, int count, const Tables& tables, uint8_t* __restrict to, int64_t plane) {
  for (int i = 0; i < count; ++i) {
    const int32_t r = in.red[i], g = in.green[i], b = in.blue[i];
    const int32_t high = std::max(r, std::max(g, b)), low = std::min(r, std::min(g, b)), spread = high - low;
    const int32_t hue_offset = high == r ? g - b : (high == g ? b - r + 2 * spread : r - g + 4 * spread);
    int32_t hue = (hue_offset * reciprocal(30, spread) + (1 << (kFraction - 1))) >> kFraction;
    hue = hue < 0 ? hue + 180 : hue;
    const int32_t strength = (spread * reciprocal(255, high) + (1 << (kFraction - 1))) >> kFraction;
    hue = tables.hue[hue];
    const int32_t saturation = tables.saturation[strength], value = tables.value[high];
    to[i] = channel(hue, saturation, value, 150);
    to[plane + i] = channel(hue, saturation, value, 90);
    to[2 * plane + i] = channel(hue, saturation, value, 30);
  }
}

// `out` may be the input itself, because each chunk is read before it is written.
GT_VECTOR void adjust_row(const uint8_t* row, int64_t step, int64_t channel_step, int64_t width, const Tables& tables,
                          uint8_t* out, int64_t plane) {
  Chunk chunk;
  for (int64_t start = 0; start < width; start += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, width - start));
    if (step == 3) {
      read_chunk<3>(row + 3 * start, channel_step, count, chunk);
    } else {
      read_chunk<1>(row + start, channel_step, count, chunk);
    }
    adjust_chunk(chunk, count, tables, out + start, plane);
  }
}

GT_VECTOR void split_row(const uint8_t* __restrict rgb, int64_t width, uint8_t* __restrict out, int64_t plane) {
  for (int64_t i = 0; i < width; ++i) {
    out[i] = rgb[3 * i];
    out[plane + i] = rgb[3 * i + 1];
    out[2 * plane + i] = rgb[3 * i + 2];
  }
}

}  // namespace

// Maps the colours of an image by `tables`, (3, 256) for hue, saturation, value. Distances of `in` in bytes: `row`
// between rows, `step` (1 or 3) between pixels, `channel` between channels; of `out`: `plane` between planes, `stride`
// between rows. `out` may be `in` if that consists of planes.
extern "C" GT_EXPORT void graph_train_hsv_planes(const uint8_t* in, int64_t height, int64_t width, int64_t row,
                                                 int64_t step, int64_t channel, const uint8_t* tables, uint8_t* out,
                                                 int64_t plane, int64_t stride) {
  const Tables made = make_tables(tables);
  for (int64_t y = 0; y < height; ++y) {
    adjust_row(in + row * y, step, channel, width, made, out + stride * y, plane);
  }
}

// Converts an image (height, width, 3) to planes; its rows are `row` bytes apart, its pixels contiguous.
extern "C" GT_EXPORT void graph_train_split_planes(const uint8_t* in, int64_t height, int64_t width, int64_t row,
                                                   uint8_t* out, int64_t plane, int64_t stride) {
  for (int64_t y = 0; y < height; ++y) {
    split_row(in + row * y, width, out + stride * y, plane);
  }
}
