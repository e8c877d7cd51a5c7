// Compiled once for each instruction set, with GT_ISA naming it. Nothing but static functions and one table may be
// defined here: a function with external linkage could be merged with that of another instruction set.
#include "native/vector_kernels.h"

#include <cmath>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define GT_JOIN_(a, b) a##b
#define GT_JOIN(a, b) GT_JOIN_(a, b)
#define GT_FN static inline __attribute__((always_inline))
#define GT_FN_MEMBER inline __attribute__((always_inline))

namespace graph_train {
namespace {

constexpr int kLanes = 16;
// Number of additions in float lanes before sums are moved to double: keeps rounding below that of one float operation.
constexpr int64_t kFlush = 64;
// Rows for which columns and constants are loaded once. With SiLU, loading them for each row would take as long as the
// arithmetic; without, memory bandwidth is the limit, and complete rows are read faster.
template<bool kSilu>
constexpr int64_t kRowsTogether = kSilu ? 16 : 1;

typedef float V __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4), may_alias));

GT_FN V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
GT_FN void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
GT_FN V splat(float x) { return V{} + x; }

typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));
typedef uint16_t UnalignedH __attribute__((vector_size(32), aligned(2), may_alias));

// Equivalent to to_float and from_float in number_types.h, which define the rounding.
GT_FN V load(const Bfloat16* p) {
#ifdef __AVX512F__  // one instruction; the conversion below is compiled to six
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#else
  const H halves = *reinterpret_cast<const UnalignedH*>(p);
  return (V)(__builtin_convertvector(halves, U) << 16);
#endif
}
GT_FN void store(Bfloat16* p, V v) {
  const U bits = (U)v;
  U rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  rounded = v != v ? U{} + 0x7FC0 : rounded;
  *reinterpret_cast<UnalignedH*>(p) = __builtin_convertvector(rounded, H);
}

// Loads the first k lanes, k < 16; the others are zero.
template<typename T>
GT_FN V load_part(const T* p, int64_t k) {
  V v{};
  for (int64_t i = 0; i < k; ++i) v[i] = to_float(p[i]);
  return v;
}
template<typename T>
GT_FN void store_part(T* p, V v, int64_t k) {
  for (int64_t i = 0; i < k; ++i) p[i] = from_float<T>(v[i]);
}
template<typename T>
GT_FN V load_k(const T* p, int64_t k) {
  return k == kLanes ? load(p) : load_part(p, k);
}
template<typename T>
GT_FN void store_k(T* p, V v, int64_t k) {
  k == kLanes ? store(p, v) : store_part(p, v, k);
}

// x clamped to [-86, 86].
GT_FN V bounded(V x) {
#ifdef __AVX512DQ__
  return (V)_mm512_range_ps((__m512)x, _mm512_set1_ps(86.0f), 2);
#else
  x = x > 86.0f ? splat(86.0f) : x;
  return x < -86.0f ? splat(-86.0f) : x;
#endif
}

// e^-x, with |x| clamped to 86. Relative error below 3e-7, or 1e-7 for |x| < 10.
// -x = n ln 2 - r with |r| <= ln(2) / 2, then a polynomial in r and 2^n through the exponent's bits.
GT_FN V exp_of_negative(V x) {
  x = bounded(x);
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, left in the low bits
  const V shifted = x * -1.44269504f + kMagic;
  const V n = shifted - kMagic;
#ifdef __FMA__
  const V r = x + n * 0.693147182f;
#else
  V r = x + n * 0.693359375f;  // ln 2 in two parts: the first has few bits, its products are exact
  r = r + n * -2.12194440e-4f;
#endif
  V p = splat(1.3814540579915047e-3f);  // minimax of the relative error with the first two coefficients given
  p = p * r - 8.36874544620514e-3f;
  p = p * r + 4.168838899254799e-2f;
  p = p * r - 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  p = p * r - 1.0f;
  p = p * r + 1.0f;
  return (V)((U)p + ((U)shifted << 23));
}

GT_FN V reciprocal(V x) {
#ifdef __AVX512F__
  const V guess = (V)_mm512_rcp14_ps((__m512)x);
  return guess * (2.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

GT_FN V sigmoid_v(V x) { return reciprocal(1.0f + exp_of_negative(x)); }
GT_FN V silu_v(V x) { return x * sigmoid_v(x); }
GT_FN V silu_slope(V x) {
  const V s = sigmoid_v(x);
  return s * (1.0f + x * (1.0f - s));
}

GT_FN double total(V v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}
GT_FN void add_lanes(double* sums, V v, int64_t k) {
  for (int64_t i = 0; i < k; ++i) sums[i] += v[i];
}

// Calls body(offset, lanes) on pieces of up to 16 elements.
template<typename Body>
GT_FN void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, static_cast<int64_t>(kLanes));
  if (i < n) body(i, n - i);
}

void silu(const float* x, float* y, int64_t n) {
  for_lanes(n,
            [=](int64_t i, int64_t k) __attribute__((always_inline)) { store_k(y + i, silu_v(load_k(x + i, k)), k); });
}

void silu_grad(const float* x, const float* dy, float* dx, int64_t n) {
  for_lanes(n, [=](int64_t i, int64_t k) __attribute__((always_inline)) {
    store_k(dx + i, load_k(dy + i, k) * silu_slope(load_k(x + i, k)), k);
  });
}

void sigmoid_grad(const float* y, const float* dy, float* dx, int64_t n) {
  for_lanes(n, [=](int64_t i, int64_t k) __attribute__((always_inline)) {
    const V value = load_k(y + i, k);
    store_k(dx + i, load_k(dy + i, k) * (value * (1.0f - value)), k);
  });
}

template<typename From, typename To>
void convert(const From* x, To* y, int64_t n) {
  for_lanes(n, [=](int64_t i, int64_t k) __attribute__((always_inline)) { store_k(y + i, load_k(x + i, k), k); });
}

template<typename T>
void add(const T* a, const T* b, T* out, int64_t n) {
  for_lanes(n, [=](int64_t i, int64_t k)
                   __attribute__((always_inline)) { store_k(out + i, load_k(a + i, k) + load_k(b + i, k), k); });
}

// Sums of f(i, lanes, &first, &second) over a plane.
template<typename Body>
GT_FN void plane_sums(int64_t n, const Body& body, double* first, double* second) {
  constexpr int64_t kPiece = kFlush * kLanes * 2;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = begin + kPiece < n ? begin + kPiece : n;
    V a0{}, a1{}, b0{}, b1{};
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      body(i, static_cast<int64_t>(kLanes), &a0, &b0);
      body(i + kLanes, static_cast<int64_t>(kLanes), &a1, &b1);
    }
    for (; i < end; i += kLanes) body(i, end - i < kLanes ? end - i : static_cast<int64_t>(kLanes), &a0, &b0);
    *first += total(a0 + a1);
    *second += total(b0 + b1);
  }
}

// The same per channel: 16 channels at a time over 64 rows, which stay in the cache.
template<typename Body>
GT_FN void row_sums(int64_t rows, int64_t channels, const Body& body, double* firsts, double* seconds) {
  for (int64_t begin = 0; begin < rows; begin += kFlush) {
    const int64_t end = begin + kFlush < rows ? begin + kFlush : rows;
    for_lanes(channels, [&](int64_t c, int64_t k) __attribute__((always_inline)) {
      V a0{}, a1{}, b0{}, b1{};
      const auto columns = body.prepare(c, k);
      int64_t row = begin;
      for (; row + 2 <= end; row += 2) {
        body.add(columns, row * channels + c, k, &a0, &b0);
        body.add(columns, (row + 1) * channels + c, k, &a1, &b1);
      }
      if (row < end) body.add(columns, row * channels + c, k, &a0, &b0);
      add_lanes(firsts + c, a0 + a1, k);
      add_lanes(seconds + c, b0 + b1, k);
    });
  }
}

void plane_moments(const float* x, int64_t n, float shift, double* sum, double* square) {
  plane_sums(
      n,
      [=](int64_t i, int64_t k, V* a, V* b) __attribute__((always_inline)) {
        V d = load_k(x + i, k) - shift;
        if (k < kLanes) {  // lanes after the end must count as zero
          for (int64_t lane = k; lane < kLanes; ++lane) d[lane] = 0;
        }
        *a += d;
        *b += d * d;
      },
      sum, square);
}

template<typename T>
struct RowMoments {
  const T* x;
  const float* shift;
  GT_FN_MEMBER V prepare(int64_t c, int64_t k) const { return load_k(shift + c, k); }
  GT_FN_MEMBER void add(V shifts, int64_t at, int64_t k, V* a, V* b) const {
    const V d = load_k(x + at, k) - shifts;
    *a += d;
    *b += d * d;
  }
};

template<typename T>
void row_moments(const T* x, int64_t rows, int64_t channels, const float* shift, double* sums, double* squares) {
  row_sums(rows, channels, RowMoments<T>{x, shift}, sums, squares);
}

template<bool kSilu>
GT_FN V activated(V z) {
  return kSilu ? silu_v(z) : z;
}

void plane_normalise(const float* x, float* y, int64_t n, float mean, float gain, float bias) {
  for_lanes(n, [=](int64_t i, int64_t k)
                   __attribute__((always_inline)) { store_k(y + i, (load_k(x + i, k) - mean) * gain + bias, k); });
}

// Calls body(columns, offset, lanes) on pieces of up to 16 channels, with columns = prepare(channel, lanes), which stay
// in registers for kTogether rows, or for all rows where one piece is a row.
template<int64_t kTogether, typename Prepare, typename Body>
GT_FN void for_rows(int64_t rows, int64_t channels, const Prepare& prepare, const Body& body) {
  const int64_t together = channels <= kLanes ? rows : kTogether;
  for (int64_t begin = 0; begin < rows; begin += together) {
    const int64_t end = begin + together < rows ? begin + together : rows;
    for_lanes(channels, [&](int64_t c, int64_t k) __attribute__((always_inline)) {
      const auto columns = prepare(c, k);
      for (int64_t row = begin; row < end; ++row) body(columns, row * channels + c, k);
    });
  }
}

struct Columns {
  V mean, gain, bias;
};
GT_FN Columns columns_of(const ChannelAffine& affine, int64_t c, int64_t k) {
  return {load_k(affine.mean + c, k), load_k(affine.gain + c, k), load_k(affine.bias + c, k)};
}

template<bool kSilu, typename T>
void row_normalise_as(const T* x, T* y, int64_t rows, int64_t channels, ChannelAffine affine) {
  for_rows<kRowsTogether<kSilu>>(
      rows, channels, [=](int64_t c, int64_t k) __attribute__((always_inline)) { return columns_of(affine, c, k); },
      [=](const Columns& columns, int64_t at, int64_t k) __attribute__((always_inline)) {
        const V centred = load_k(x + at, k) - columns.mean;
        store_k(y + at, activated<kSilu>(centred * columns.gain + columns.bias), k);
      });
}

template<typename T>
void row_normalise(const T* x, T* y, int64_t rows, int64_t channels, ChannelAffine affine, bool silu) {
  silu ? row_normalise_as<true>(x, y, rows, channels, affine) : row_normalise_as<false>(x, y, rows, channels, affine);
}

template<bool kSilu>
GT_FN V before_silu(V dy, V centred, V gain, V bias) {
  return kSilu ? dy * silu_slope(centred * gain + bias) : dy;
}

void plane_gradient_sums(const float* x, const float* dy, int64_t n, float mean, double* sum, double* product) {
  plane_sums(
      n,
      [=](int64_t i, int64_t k, V* a, V* b) __attribute__((always_inline)) {
        const V gradient = load_k(dy + i, k);  // 0 beyond the end
        *a += gradient;
        *b += gradient * (load_k(x + i, k) - mean);
      },
      sum, product);
}

template<bool kSilu, bool kKeeps, typename T>
struct RowGradientSums {
  const T* x;
  const T* dy;
  ChannelAffine affine;
  T* dz;
  GT_FN_MEMBER Columns prepare(int64_t c, int64_t k) const { return columns_of(affine, c, k); }
  GT_FN_MEMBER void add(const Columns& columns, int64_t at, int64_t k, V* a, V* b) const {
    const V centred = load_k(x + at, k) - columns.mean;
    const V gradient = before_silu<kSilu>(load_k(dy + at, k), centred, columns.gain, columns.bias);
    if (kKeeps) store_k(dz + at, gradient, k);
    *a += gradient;
    *b += gradient * centred;
  }
};

template<bool kSilu, bool kKeeps, typename T>
void row_gradient_sums_as(const T* x, const T* dy, int64_t rows, int64_t channels, ChannelAffine affine, T* dz,
                          double* sums, double* products) {
  row_sums(rows, channels, RowGradientSums<kSilu, kKeeps, T>{x, dy, affine, dz}, sums, products);
}

template<typename T>
void row_gradient_sums(const T* x, const T* dy, int64_t rows, int64_t channels, ChannelAffine affine, bool silu, T* dz,
                       double* sums, double* products) {
  if (!silu) return row_gradient_sums_as<false, false>(x, dy, rows, channels, affine, dz, sums, products);
  dz == nullptr ? row_gradient_sums_as<true, false>(x, dy, rows, channels, affine, dz, sums, products)
                : row_gradient_sums_as<true, true>(x, dy, rows, channels, affine, dz, sums, products);
}

void plane_gradient(const float* x, const float* dy, float* dx, int64_t n, float mean, float gain, float offset,
                    float slope) {
  for_lanes(n, [=](int64_t i, int64_t k) __attribute__((always_inline)) {
    const V centred = load_k(x + i, k) - mean;
    store_k(dx + i, (load_k(dy + i, k) - offset - centred * slope) * gain, k);
  });
}

struct GradientColumns {
  Columns of;
  V offset, slope;
};

template<bool kSilu, typename T>
void row_gradient_as(const T* x, const T* dy, T* dx, int64_t rows, int64_t channels, ChannelAffine affine,
                     const float* offset, const float* slope) {
  for_rows<kRowsTogether<kSilu>>(
      rows, channels,
      [=](int64_t c, int64_t k) __attribute__((always_inline)) {
        const Columns of = columns_of(affine, c, k);
        return GradientColumns{of, load_k(offset + c, k), load_k(slope + c, k)};
      },
      [=](const GradientColumns& columns, int64_t at, int64_t k) __attribute__((always_inline)) {
        const V centred = load_k(x + at, k) - columns.of.mean;
        const V dz = before_silu<kSilu>(load_k(dy + at, k), centred, columns.of.gain, columns.of.bias);
        store_k(dx + at, (dz - columns.offset - centred * columns.slope) * columns.of.gain, k);
      });
}

template<typename T>
void row_gradient(const T* x, const T* dy, T* dx, int64_t rows, int64_t channels, ChannelAffine affine,
                  const float* offset, const float* slope, bool silu) {
  silu ? row_gradient_as<true>(x, dy, dx, rows, channels, affine, offset, slope)
       : row_gradient_as<false>(x, dy, dx, rows, channels, affine, offset, slope);
}

template<typename T>
constexpr RowKernels<T> kRows = {add<T>, row_moments<T>, row_normalise<T>, row_gradient_sums<T>, row_gradient<T>};

}  // namespace

const VectorKernels GT_JOIN(vector_kernels_, GT_ISA) = {
    silu,
    silu_grad,
    sigmoid_grad,
    convert<float, Bfloat16>,
    convert<Bfloat16, float>,
    {plane_moments, plane_normalise, plane_gradient_sums, plane_gradient},
    kRows<float>,
    kRows<Bfloat16>,
};

}  // namespace graph_train
