// Arguments of BatchNorm's CUDA kernels, and partition of the work.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kNormThreads = 256;
// Consecutive channels per thread and per block: a block reads at least 128 bytes of a row and produces few sums.
constexpr int kNormPerThread = 8;
constexpr int kNormTile = 64;
// Maximum number of blocks of a cooperative launch; no GPU runs many more at once.
constexpr int64_t kNormMaxBlocks = 1280;

// An array (rows, channels), cut into `tiles` of channels, each cut into `parts` of rows. A block processes one piece
// at a time with `columns` threads, kNormPerThread channels each, in `lanes` rows.
struct NormPieces {
  int64_t rows, channels, tiles, parts;
  int32_t columns, lanes;

  GT_HOST_DEVICE int64_t count() const { return tiles * parts; }
};

// As many parts as `blocks` can process at once; at least one.
GT_HOST_DEVICE NormPieces norm_pieces(int64_t rows, int64_t channels, int64_t blocks) {
  NormPieces pieces{};
  const int64_t columns = (channels + kNormPerThread - 1) / kNormPerThread;
  pieces.rows = rows;
  pieces.channels = channels;
  pieces.tiles = (columns * kNormPerThread + kNormTile - 1) / kNormTile;
  pieces.columns = static_cast<int32_t>((columns + pieces.tiles - 1) / pieces.tiles);
  pieces.lanes = kNormThreads / pieces.columns;
  pieces.parts = blocks / pieces.tiles;
  if (pieces.parts < 1) pieces.parts = 1;
  return pieces;
}

// Arrays per channel are float (C,); unused pointers are null.
struct NormArgs {
  const void* x;
  const void* dy;
  void* out;  // y or dx
  int64_t rows, channels;
  const float* gamma;
  const float* beta;
  const float* mean;
  const float* variance;
  float* moving_mean;  // null: not updated
  float* moving_variance;
  float* statistics;  // (2, C): mean, 1 / deviation
  float* d_beta;
  float* d_gamma;
  float* both;          // (2, C): d_beta, d_gamma
  float* partial_sums;  // (parts, 2, C)
  unsigned int* counters;
  double pixels;  // number of pixels of the statistics, over all ranks
  float epsilon;
  float rate;  // weight of the new value in the moving statistics
  bool silu;
  bool statistics_of_batch;
};

}  // namespace graph_train
