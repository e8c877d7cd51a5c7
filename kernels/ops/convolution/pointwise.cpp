#include "ops/convolution/pointwise.h"

#include <cstring>
#include <vector>

#include "native/common.h"
#include "native/onednn.h"
#include "native/vector_kernels.h"

namespace graph_train {

namespace {

// c (rows, columns) = a b, or c += a b. `a` is (rows, inner) or, transposed, (inner, rows); the same for `b`.
void multiply(bool transpose_a, bool transpose_b, int64_t rows, int64_t columns, int64_t inner, const float* a,
              const float* b, bool add, float* c) {
  const auto status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', rows, columns, inner, 1.0f, a,
                 transpose_a ? rows : inner, b, transpose_b ? inner : columns, add ? 1.0f : 0.0f, c, columns);
  CHECK(status == dnnl_success) << "oneDNN matrix product failed: status " << status;
}

// One image: x (C, HW), weights (O, C), y (O, HW).
void convolve_image(ConvolutionPass pass, const ConvolutionShape& s, float* x, float* weights, float* y, bool add) {
  const int64_t area = s.in_height * s.in_width, in = s.in_channels, out = s.out_channels;
  if (pass == ConvolutionPass::kForward) {
    multiply(false, false, out, area, in, weights, x, false, y);
  } else if (pass == ConvolutionPass::kDataGradient) {
    multiply(true, false, in, area, out, weights, y, false, x);
  } else {
    multiply(false, true, out, in, area, y, x, add, weights);
  }
}

void convolve_images(ConvolutionPass pass, const ConvolutionShape& s, float* x, float* weights, float* y, int64_t begin,
                     int64_t end) {
  const int64_t area = s.in_height * s.in_width;
  for (int64_t image = begin; image < end; ++image) {
    convolve_image(pass, s, x + image * s.in_channels * area, weights, y + image * s.out_channels * area,
                   image > begin);
  }
}

// sum_part(part, target) writes the gradient of one part's activations to target; parts are then added in order.
template<typename SumPart>
void filter_gradient(const ConvolutionShape& s, int64_t parts, float* weights, const SumPart& sum_part) {
  const int64_t count = s.out_channels * s.in_channels;
  auto* others = static_cast<float*>(scratch_memory(Scratch::kWeights, (parts - 1) * count * sizeof(float)));
  parallel_for(parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) sum_part(part, part == 0 ? weights : others + (part - 1) * count);
  });
  const auto add = vector_kernels().rows<float>().add;
  parallel_for(count, 1 << 14, [=](int64_t begin, int64_t end) {
    float* const sum = weights + begin;
    for (int64_t part = 1; part < parts; ++part) add(sum, others + (part - 1) * count + begin, sum, end - begin);
  });
}

// Channels last: x (pixels, C), y (pixels, O); each thread processes part of the pixels.
void filter_gradient_of_pixels(const ConvolutionShape& s, const float* x, float* weights, const float* y) {
  constexpr int64_t kPixelsPerThread = 1 << 10;
  const int64_t pixels = s.batch * s.in_height * s.in_width, in = s.in_channels, out = s.out_channels;
  const int64_t parts = std::min<int64_t>(num_threads(), std::max<int64_t>(1, pixels / kPixelsPerThread));
  filter_gradient(s, parts, weights, [=](int64_t part, float* sum) {
    const int64_t begin = pixels * part / parts, end = pixels * (part + 1) / parts;
    multiply(true, false, out, in, end - begin, y + begin * out, x + begin * in, false, sum);
  });
}

}  // namespace

// For channels-last activations, oneDNN's 1x1 convolution is as fast as a matrix product, except for the gradient of
// the filter, which is much slower on large maps with few channels.
bool is_pointwise(ConvolutionPass pass, const ConvolutionShape& s) {
  return s.kernel_height == 1 && s.kernel_width == 1 && s.stride_height == 1 && s.stride_width == 1 && s.groups == 1
         && s.in_height == s.out_height && s.in_width == s.out_width && !s.weights_channels_last
         && (!s.channels_last || pass == ConvolutionPass::kFilterGradient);
}

void convolve_pointwise(ConvolutionPass pass, const ConvolutionShape& s, float* x, float* weights, float* y) {
  const std::lock_guard<std::mutex> lock(dnnl_mutex());
  if (s.channels_last) return filter_gradient_of_pixels(s, x, weights, y);
  // If images can be distributed evenly, each thread processes complete images without synchronisation. Otherwise the
  // threads share each product.
  const int64_t threads = num_threads();
  if (s.batch % threads != 0 && s.batch < 4 * threads) {
    convolve_images(pass, s, x, weights, y, 0, s.batch);
  } else if (pass == ConvolutionPass::kFilterGradient) {
    filter_gradient(s, threads, weights, [=](int64_t part, float* sum) {
      convolve_images(pass, s, x, sum, y, s.batch * part / threads, s.batch * (part + 1) / threads);
    });
  } else {
    parallel_for(s.batch, 1, [=](int64_t begin, int64_t end) { convolve_images(pass, s, x, weights, y, begin, end); });
  }
}

}  // namespace graph_train
