// Arguments of the CUDA kernels for concatenation and split along an axis.
#pragma once

#include "native/host_device.h"

namespace graph_train {

constexpr int kConcatThreads = 256;
// Number of pieces passed as launch arguments; more need a table in device memory.
constexpr int kConcatInline = 32;

// One tensor: `width` units of each row, from unit `offset` of the joined row on.
struct ConcatPiece {
  void* data;
  int64_t offset, width;
};

// A unit is the largest number of bytes, up to 16, that divides all widths and offsets.
struct ConcatArgs {
  void* joined;
  int64_t rows, width;       // of the joined tensor, in units
  const ConcatPiece* table;  // null: `pieces`
  int32_t number;
  ConcatPiece pieces[kConcatInline];
};

}  // namespace graph_train
