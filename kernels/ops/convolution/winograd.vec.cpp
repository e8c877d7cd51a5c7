// Compiled once for each instruction set, with GT_ISA naming it; as native/vector_kernels.vec.cpp, nothing but static
// functions and one pointer may be defined here.
#include <utility>

#include "ops/convolution/winograd_kernels.h"

#define GT_JOIN_(a, b) a##b
#define GT_JOIN(a, b) GT_JOIN_(a, b)
#define GT_FN static inline __attribute__((always_inline))

namespace graph_train {

#ifdef __FMA__

namespace {

// A block of the matrix products has kRows x 2 vectors of sums, so that registers also hold two vectors of b and one
// value of a.
#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kRows = 14;
#else
constexpr int kLanes = 8;
constexpr int kRows = 6;
#endif
constexpr int64_t kPanel = 2 * kLanes;
constexpr int kTaps = 3;
constexpr int kUnroll = 16;  // covers every loop over rows, points and taps

typedef float V __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

GT_FN V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
GT_FN void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }

// One dimension of the transforms; two dimensions are first all columns, then all rows.
template<int kSide>
struct Transform;

// Points 0, 1, -1 and infinity.
template<>
struct Transform<2> {
  GT_FN void input(const V* d, V* out) {  // Bᵀ
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[3] - d[1];
  }
  GT_FN void output(const V* p, V* y) {  // Aᵀ
    y[0] = p[0] + p[1] + p[2];
    y[1] = p[1] - p[2] + p[3];
  }
  GT_FN void output_gradient(const V* dy, V* out) {  // A
    out[0] = dy[0];
    out[1] = dy[0] + dy[1];
    out[2] = dy[0] - dy[1];
    out[3] = dy[1];
  }
  GT_FN void weights(const V* g, V* out) {  // G
    const V even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    out[0] = g[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = g[2];
  }
  GT_FN void weights_gradient(const V* s, V* g) {  // Gᵀ
    const V even = 0.5f * (s[1] + s[2]);
    g[0] = s[0] + even;
    g[1] = 0.5f * (s[1] - s[2]);
    g[2] = s[3] + even;
  }
};

// Points 0, 3/4, -3/4, 3/2, -3/2 and infinity: half the rounding errors of the paper's 0, 1, -1, 2, -2 and infinity.
template<>
struct Transform<4> {
  static constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;
  // Reciprocals of the products of a point's distances to the others.
  static constexpr float at_0 = 1 / (a2 * b2), at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));

  GT_FN void input(const V* d, V* out) {
    const V even_a = d[4] - b2 * d[2], odd_a = a * (d[3] - b2 * d[1]);
    const V even_b = d[4] - a2 * d[2], odd_b = b * (d[3] - a2 * d[1]);
    out[0] = even_a - a2 * d[2] + (a2 * b2) * d[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = d[5] - (a2 + b2) * d[3] + (a2 * b2) * d[1];
  }
  GT_FN void output(const V* p, V* y) {
    const V even_a = p[1] + p[2], odd_a = p[1] - p[2], even_b = p[3] + p[4], odd_b = p[3] - p[4];
    y[0] = p[0] + even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = (a * a2) * odd_a + (b * b2) * odd_b + p[5];
  }
  GT_FN void output_gradient(const V* dy, V* out) {
    const V even_a = dy[0] + a2 * dy[2], odd_a = a * dy[1] + (a * a2) * dy[3];
    const V even_b = dy[0] + b2 * dy[2], odd_b = b * dy[1] + (b * b2) * dy[3];
    out[0] = dy[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = dy[3];
  }
  GT_FN void weights(const V* g, V* out) {
    const V even_a = at_a * (g[0] + a2 * g[2]), odd_a = (a * at_a) * g[1];
    const V even_b = at_b * (g[0] + b2 * g[2]), odd_b = (b * at_b) * g[1];
    out[0] = at_0 * g[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = g[2];
  }
  GT_FN void weights_gradient(const V* s, V* g) {
    const V even_a = at_a * (s[1] + s[2]), even_b = at_b * (s[3] + s[4]);
    g[0] = at_0 * s[0] + even_a + even_b;
    g[1] = (a * at_a) * (s[1] - s[2]) + (b * at_b) * (s[3] - s[4]);
    g[2] = a2 * even_a + b2 * even_b + s[5];
  }
};

// Applies `one` to the columns, then to the rows of a square of kFrom x kFrom vectors; read(row, column) and
// write(row, column, vector) are called once for each element.
template<int kFrom, int kTo, typename One, typename Read, typename Write>
GT_FN void transform_square(const One& one, const Read& read, const Write& write) {
  V rows[kTo][kFrom];
#pragma GCC unroll kUnroll
  for (int j = 0; j < kFrom; ++j) {
    V from[kFrom], to[kTo];
#pragma GCC unroll kUnroll
    for (int i = 0; i < kFrom; ++i) from[i] = read(i, j);
    one(from, to);
#pragma GCC unroll kUnroll
    for (int i = 0; i < kTo; ++i) rows[i][j] = to[i];
  }
#pragma GCC unroll kUnroll
  for (int i = 0; i < kTo; ++i) {
    V to[kTo];
    one(rows[i], to);
#pragma GCC unroll kUnroll
    for (int j = 0; j < kTo; ++j) write(i, j, to[j]);
  }
}

GT_FN bool holds(const Image& image, int64_t top, int64_t left, int64_t side) {
  return top >= 0 && left >= 0 && top + side <= image.height && left + side <= image.width;
}

// Reads kFrom x kFrom pixels of all channels and writes kTo x kTo points.
template<int kFrom, int kTo, typename One>
GT_FN void transform_pixels(const Image& image, int64_t top, int64_t left, const One& one, float* points,
                            int64_t stride) {
  const auto all_channels = [&](auto pixel) __attribute__((always_inline)) {
    for (int64_t c = 0; c < image.channels; c += kLanes) {
      transform_square<kFrom, kTo>(
          one, [&](int i, int j) __attribute__((always_inline)) { return pixel(top + i, left + j, c); },
          [&](int i, int j, V v) __attribute__((always_inline)) { store(points + (i * kTo + j) * stride + c, v); });
    }
  };
  const auto at = [&](int64_t row, int64_t column, int64_t c) __attribute__((always_inline)) {
    return load(image.data + (row * image.width + column) * image.channels + c);
  };
  if (holds(image, top, left, kFrom)) {
    all_channels(at);
  } else {
    all_channels([&](int64_t row, int64_t column, int64_t c) __attribute__((always_inline)) {
      return holds(image, row, column, 1) ? at(row, column, c) : V{};
    });
  }
}

template<int kSide>
void input(const Image& image, int64_t top, int64_t left, float* points, int64_t stride) {
  transform_pixels<kSide + 2, kSide + 2>(image, top, left, Transform<kSide>::input, points, stride);
}

template<int kSide>
void output_gradient(const Image& image, int64_t top, int64_t left, float* points, int64_t stride) {
  transform_pixels<kSide, kSide + 2>(image, top, left, Transform<kSide>::output_gradient, points, stride);
}

template<int kSide>
void output(const float* points, int64_t stride, const Image& image, int64_t top, int64_t left) {
  const bool inside = holds(image, top, left, kSide);
  for (int64_t c = 0; c < image.channels; c += kLanes) {
    transform_square<kSide + 2, kSide>(
        Transform<kSide>::output,
        [&](int i, int j) __attribute__((always_inline)) { return load(points + (i * (kSide + 2) + j) * stride + c); },
        [&](int i, int j, V v) __attribute__((always_inline)) {
          const int64_t row = top + i, column = left + j;
          if (inside || holds(image, row, column, 1)) {
            store(image.data + (row * image.width + column) * image.channels + c, v);
          }
        });
  }
}

// Columns in panels of kPanel, the last one perhaps narrower: a panel is (inner, width) without gaps.
template<typename Body>
GT_FN void for_panels(int64_t columns, const Body& body) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    body(first, columns - first < kPanel ? columns - first : kPanel);
  }
}

template<int kSide>
void weights(const WinogradWeights& w, int64_t begin, int64_t end, float* points, int64_t stride) {
  for_panels(w.columns, [&](int64_t first, int64_t width) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < width; column += kLanes) {
        alignas(64) float taps[kTaps * kTaps][kLanes];
        const float* from = w.data + row * w.inner_step + (first + column) * w.column_step;
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int tap = 0; tap < kTaps * kTaps; ++tap) taps[tap][lane] = from[lane * w.column_step + tap];
        }
        float* to = points + first * w.inner + row * width + column;
        transform_square<kTaps, kSide + 2>(
            Transform<kSide>::weights,
            [&](int i, int j) __attribute__((always_inline)) {
              return load(taps[w.reversed ? kTaps * kTaps - 1 - (i * kTaps + j) : i * kTaps + j]);
            },
            [&](int i, int j, V v) __attribute__((always_inline)) { store(to + (i * (kSide + 2) + j) * stride, v); });
      }
    }
  });
}

template<int kSide>
void weights_gradient(const float* sums, int64_t stride, int64_t parts, int64_t out_channels, int64_t in_channels,
                      int64_t begin, int64_t end, float* weights) {
  constexpr int64_t kPoints = (kSide + 2) * (kSide + 2);
  for (int64_t o = begin; o < end; o += kLanes) {
    for (int64_t c = 0; c < in_channels; ++c) {
      alignas(64) float taps[kTaps * kTaps][kLanes];
      transform_square<kSide + 2, kTaps>(
          Transform<kSide>::weights_gradient,
          [&](int i, int j) __attribute__((always_inline)) {
            const float* at = sums + (i * (kSide + 2) + j) * stride + c * out_channels + o;
            V sum = load(at);
            for (int64_t part = 1; part < parts; ++part) sum += load(at + part * kPoints * stride);
            return sum;
          },
          [&](int i, int j, V v) __attribute__((always_inline)) { store(taps[i * kTaps + j], v); });
      for (int lane = 0; lane < kLanes; ++lane) {
        float* to = weights + ((o + lane) * in_channels + c) * kTaps * kTaps;
        for (int tap = 0; tap < kTaps * kTaps; ++tap) to[tap] = taps[tap][lane];
      }
    }
  }
}

// Strides of a matrix product: element (r, k) of a is a[r * a_row + k * a_inner], of b b[k * b_row + column].
struct Strides {
  int64_t a_row, a_inner, b_row, c_row;
};

// kHeight rows of c, and kWidth vectors of columns; added to c where kAdds.
template<int kHeight, int kWidth, bool kAdds>
void multiply_block(const float* a, const float* b, int64_t inner, const Strides& given, float* c) {
  const Strides s = given;
  V sums[kHeight][kWidth] = {};
  for (int64_t k = 0; k < inner; ++k) {
    V right[kWidth];
#pragma GCC unroll kUnroll
    for (int j = 0; j < kWidth; ++j) right[j] = load(b + k * s.b_row + j * kLanes);
#pragma GCC unroll kUnroll
    for (int r = 0; r < kHeight; ++r) {
      const float left = a[r * s.a_row + k * s.a_inner];
#pragma GCC unroll kUnroll
      for (int j = 0; j < kWidth; ++j) sums[r][j] += left * right[j];
    }
  }
#pragma GCC unroll kUnroll
  for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll kUnroll
    for (int j = 0; j < kWidth; ++j) {
      float* at = c + r * s.c_row + j * kLanes;
      store(at, kAdds ? load(at) + sums[r][j] : sums[r][j]);
    }
  }
}

using Block = void (*)(const float*, const float*, int64_t, const Strides&, float*);

// Blocks of 1 to kRows rows.
struct Blocks {
  Block of_rows[kRows];
};
template<int kWidth, bool kAdds, int... kHeights>
constexpr Blocks blocks_of(std::integer_sequence<int, kHeights...>) {
  return {{multiply_block<kHeights + 1, kWidth, kAdds>...}};
}
template<int kWidth, bool kAdds>
constexpr Blocks kBlocks = blocks_of<kWidth, kAdds>(std::make_integer_sequence<int, kRows>());

// All rows of a panel of one or two vectors, in blocks of nearly the same height.
template<bool kAdds>
GT_FN void multiply_rows(const float* a, const float* b, int64_t rows, int64_t inner, int64_t width, const Strides& s,
                         float* c) {
  const int64_t count = (rows + kRows - 1) / kRows;
  const Blocks& blocks = width == kPanel ? kBlocks<2, kAdds> : kBlocks<1, kAdds>;
  for (int64_t block = 0; block < count; ++block) {
    const int64_t begin = rows * block / count, end = rows * (block + 1) / count;
    blocks.of_rows[end - begin - 1](a + begin * s.a_row, b, inner, s, c + begin * s.c_row);
  }
}

void multiply(const float* a, const float* b, int64_t rows, int64_t inner, int64_t columns, float* c) {
  for_panels(columns, [=](int64_t first, int64_t width) __attribute__((always_inline)) {
    multiply_rows<false>(a, b + first * inner, rows, inner, width, {inner, 1, width, columns}, c + first);
  });
}

void add_product(const float* a, const float* b, int64_t rows, int64_t inner, int64_t columns, float* c) {
  for_panels(columns, [=](int64_t first, int64_t width) __attribute__((always_inline)) {
    multiply_rows<true>(a, b + first, rows, inner, width, {1, rows, columns, columns}, c + first);
  });
}

template<int kSide>
constexpr WinogradTile kTile = {
    kSide,          (kSide + 2) * (kSide + 2), input<kSide>, output<kSide>, output_gradient<kSide>,
    weights<kSide>, weights_gradient<kSide>};

constexpr WinogradKernels kKernels = {{kTile<2>, kTile<4>}, kRows, multiply, add_product};

}  // namespace

const WinogradKernels* const GT_JOIN(winograd_kernels_, GT_ISA) = &kKernels;

#else

const WinogradKernels* const GT_JOIN(winograd_kernels_, GT_ISA) = nullptr;

#endif

}  // namespace graph_train
