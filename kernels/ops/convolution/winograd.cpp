#include "ops/convolution/winograd.h"

#include <algorithm>
#include <mutex>

#include "native/common.h"
#include "native/onednn.h"
#include "native/vector_kernels.h"
#include "ops/convolution/winograd_kernels.h"

namespace graph_train {

namespace {

constexpr int64_t kTaps = 9;

// Tiles that a thread processes at a time, whose transforms should fit in its L2 cache.
constexpr int64_t kBlockBytes = 1 << 20;
constexpr int64_t kMaxTiles = 56;

// Padding between the matrices of points, to avoid cache conflicts.
constexpr int64_t kGap = 16;

// Maximum size of all threads' sums of the weights' gradients; beyond that, a direct convolution is used.
constexpr int64_t kMaxSumBytes = 32 << 20;

// One pass over the tiles of all images: a convolution from `from` (N, H, W, C) to `to` (N, H', W', O) with zero
// padding.
struct Tiles {
  const WinogradTile* tile;
  int64_t rows, columns;      // of tiles per image
  int64_t count;              // of tiles of all images
  int64_t pad_top, pad_left;  // of `from`
  Image from, to;             // sizes of one image, without data

  Image image_of(const Image& like, float* data, int64_t at) const {
    return {data + at / (rows * columns) * like.height * like.width * like.channels, like.height, like.width,
            like.channels};
  }
  int64_t top(int64_t at) const { return at / columns % rows * tile->side; }
  int64_t left(int64_t at) const { return at % columns * tile->side; }

  int64_t from_stride(int64_t tiles) const { return tiles * from.channels + kGap; }
  int64_t to_stride(int64_t tiles) const { return tiles * to.channels + kGap; }
  int64_t weights_stride() const { return from.channels * to.channels + kGap; }
  int64_t weights_size() const { return tile->points * weights_stride(); }

  void read(float* data, int64_t at, float* points, int64_t stride) const {
    tile->input(image_of(from, data, at), top(at) - pad_top, left(at) - pad_left, points, stride);
  }
};

Tiles tiles_of(const WinogradTile& tile, ConvolutionPass pass, const ConvolutionShape& s) {
  const bool reversed = pass == ConvolutionPass::kDataGradient;
  Image from{nullptr, s.in_height, s.in_width, s.in_channels}, to{nullptr, s.out_height, s.out_width, s.out_channels};
  if (reversed) std::swap(from, to);
  const int64_t rows = (to.height + tile.side - 1) / tile.side, columns = (to.width + tile.side - 1) / tile.side;
  return {&tile,
          rows,
          columns,
          s.batch * rows * columns,
          reversed ? 2 - s.pad_top : s.pad_top,
          reversed ? 2 - s.pad_left : s.pad_left,
          from,
          to};
}

// Relative costs, in products per pair of channels, fitted to times of layers of YOLOv5 on a Xeon with AVX-512:
// - transforming a tile's input and output costs as much as its products with kTransformChannels more channels;
// - transforming the weights costs as much as the products of kWeightsTiles tiles (the sums of each thread, for their
//   gradient).
// A direct convolution, with 9 products per output, is used unless this is clearly less.
constexpr double kTransformChannels = 24;
constexpr double kWeightsTiles = 110;
constexpr double kLessThanDirect = 0.87;

double cost_of(const WinogradTile& tile, ConvolutionPass pass, const ConvolutionShape& s) {
  const Tiles tiles = tiles_of(tile, pass, s);
  const double transforms = kTransformChannels * (0.5 / s.in_channels + 0.5 / s.out_channels);
  const int threads = pass == ConvolutionPass::kFilterGradient ? num_threads() : 1;
  return tile.points * (tiles.count * (1 + transforms) + kWeightsTiles * threads);
}

bool is_suitable(const ConvolutionShape& s) {
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_height == 1 && s.stride_width == 1
         && s.dilation_height == 1 && s.dilation_width == 1 && s.groups == 1 && s.pad_top <= 2 && s.pad_left <= 2
         && s.out_height > 0 && s.out_width > 0 && s.in_channels % kWinogradChannels == 0
         && s.out_channels % kWinogradChannels == 0 && s.channels_last && !s.weights_channels_last
         && !s.bfloat16_activations;
}

bool sums_fit(const WinogradTile& tile, ConvolutionPass pass, const ConvolutionShape& s) {
  return pass != ConvolutionPass::kFilterGradient
         || num_threads() * tiles_of(tile, pass, s).weights_size() * int64_t{sizeof(float)} <= kMaxSumBytes;
}

// The tile with the lowest cost; null if a direct convolution costs less.
const WinogradTile* best_tile(ConvolutionPass pass, const ConvolutionShape& s) {
  const WinogradKernels* kernels = winograd_kernels();
  if (kernels == nullptr || !is_suitable(s)) return nullptr;
  double least = kLessThanDirect * kTaps * s.batch * s.out_height * s.out_width;
  const WinogradTile* best = nullptr;
  for (const WinogradTile& tile : kernels->tiles) {
    const double cost = cost_of(tile, pass, s);
    if (cost > least || !sums_fit(tile, pass, s)) continue;
    least = cost;
    best = &tile;
  }
  return best;
}

// Tiles that a thread works on at a time, and their points.
struct Block {
  int64_t begin, end;
  bool is_first;  // of the thread
  float* from;
  float* to;
};

int64_t tiles_per_block(const Tiles& t) {
  const int64_t rows = winograd_kernels()->rows;
  const int64_t bytes = t.tile->points * (t.from.channels + t.to.channels) * sizeof(float);
  return std::clamp(kBlockBytes / bytes / rows, int64_t{1}, kMaxTiles / rows) * rows;
}

int64_t threads_of(const Tiles& t) { return std::min<int64_t>(num_threads(), t.count); }

// Calls body(thread, block) for all blocks of each thread's tiles.
template<typename Body>
void for_blocks(const Tiles& t, const Body& body) {
  const int64_t threads = threads_of(t), most = tiles_per_block(t);
  const int64_t from_size = t.tile->points * t.from_stride(most), size = from_size + t.tile->points * t.to_stride(most);
  auto* memory = static_cast<float*>(scratch_memory(Scratch::kPrimitive, threads * size * sizeof(float)));
  parallel_for(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      const int64_t begin = t.count * thread / threads, tiles = t.count * (thread + 1) / threads - begin;
      const int64_t blocks = (tiles + most - 1) / most;
      float* const own = memory + thread * size;
      for (int64_t i = 0; i < blocks; ++i) {
        body(thread, Block{begin + tiles * i / blocks, begin + tiles * (i + 1) / blocks, i == 0, own, own + from_size});
      }
    }
  });
}

float* transform_weights(const Tiles& t, const WinogradWeights& weights) {
  auto* points = static_cast<float*>(scratch_memory(Scratch::kWeights, t.weights_size() * sizeof(float)));
  parallel_for(weights.inner, std::max<int64_t>(1, (1 << 14) / weights.columns),
               [&](int64_t begin, int64_t end) { t.tile->weights(weights, begin, end, points, t.weights_stride()); });
  return points;
}

void convolve_tiles(const Tiles& t, float* from, const WinogradWeights& weights, float* to) {
  const auto multiply = winograd_kernels()->multiply;
  const float* const matrices = transform_weights(t, weights);
  const int64_t from_stride = t.from_stride(tiles_per_block(t)), to_stride = t.to_stride(tiles_per_block(t));
  for_blocks(t, [&](int64_t, const Block& block) {
    for (int64_t at = block.begin; at < block.end; ++at) {
      t.read(from, at, block.from + (at - block.begin) * t.from.channels, from_stride);
    }
    for (int64_t point = 0; point < t.tile->points; ++point) {
      multiply(block.from + point * from_stride, matrices + point * t.weights_stride(), block.end - block.begin,
               t.from.channels, t.to.channels, block.to + point * to_stride);
    }
    for (int64_t at = block.begin; at < block.end; ++at) {
      const float* points = block.to + (at - block.begin) * t.to.channels;
      t.tile->output(points, to_stride, t.image_of(t.to, to, at), t.top(at), t.left(at));
    }
  });
}

void weights_gradient(const Tiles& t, float* x, float* weights, float* y) {
  const auto add_product = winograd_kernels()->add_product;
  const int64_t size = t.weights_size();
  auto* sums = static_cast<float*>(scratch_memory(Scratch::kWeights, threads_of(t) * size * sizeof(float)));
  const int64_t from_stride = t.from_stride(tiles_per_block(t)), to_stride = t.to_stride(tiles_per_block(t));
  for_blocks(t, [&](int64_t thread, const Block& block) {
    float* const sum = sums + thread * size;
    if (block.is_first) std::fill_n(sum, size, 0.0f);
    for (int64_t at = block.begin; at < block.end; ++at) {
      t.read(x, at, block.from + (at - block.begin) * t.from.channels, from_stride);
      float* points = block.to + (at - block.begin) * t.to.channels;
      t.tile->output_gradient(t.image_of(t.to, y, at), t.top(at), t.left(at), points, to_stride);
    }
    for (int64_t point = 0; point < t.tile->points; ++point) {
      add_product(block.from + point * from_stride, block.to + point * to_stride, t.from.channels,
                  block.end - block.begin, t.to.channels, sum + point * t.weights_stride());
    }
  });
  const int64_t grain = std::max<int64_t>(1, (1 << 10) / t.from.channels);
  parallel_for(t.to.channels / kWinogradChannels, grain, [&](int64_t begin, int64_t end) {
    t.tile->weights_gradient(sums, t.weights_stride(), threads_of(t), t.to.channels, t.from.channels,
                             begin * kWinogradChannels, end * kWinogradChannels, weights);
  });
}

}  // namespace

const WinogradKernels* winograd_kernels() {
  static const WinogradKernels* const chosen =
      for_this_cpu(winograd_kernels_avx512, winograd_kernels_avx2, winograd_kernels_base);
  return chosen;
}

// For tests: m of the m x m tiles used for a convolution of these sizes; 0 for a direct convolution.
extern "C" GT_EXPORT int64_t graph_train_winograd_side(int64_t pass, const ConvolutionShape* sizes) {
  const WinogradTile* tile = best_tile(static_cast<ConvolutionPass>(pass), *sizes);
  return tile == nullptr ? 0 : tile->side;
}

bool is_winograd(ConvolutionPass pass, const ConvolutionShape& s) { return best_tile(pass, s) != nullptr; }

void convolve_winograd(ConvolutionPass pass, const ConvolutionShape& s, float* x, float* weights, float* y) {
  const Tiles tiles = tiles_of(*best_tile(pass, s), pass, s);
  const std::lock_guard<std::mutex> lock(dnnl_mutex());
  const int64_t taps_of_row = kTaps * s.in_channels;
  if (pass == ConvolutionPass::kForward) {
    convolve_tiles(tiles, x, {weights, s.in_channels, s.out_channels, kTaps, taps_of_row, false}, y);
  } else if (pass == ConvolutionPass::kDataGradient) {
    convolve_tiles(tiles, y, {weights, s.out_channels, s.in_channels, taps_of_row, kTaps, true}, x);
  } else {
    weights_gradient(tiles, x, weights, y);
  }
}

}  // namespace graph_train
