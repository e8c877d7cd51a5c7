// Arguments of the CUDA kernels for concatenation and split along an axis.
#ifndef GRAPH_TRAIN_KERNELS_CONCAT_H_
#define GRAPH_TRAIN_KERNELS_CONCAT_H_

#include "native/host_device.h"

namespace graph_train {

constexpr int kConcatThreads = 256;
// Pieces that travel with the launch; more of them need a table in device memory.
constexpr int kConcatInline = 32;

// One tensor: `width` units of each row, from unit `offset` of the joined row on.
struct ConcatPiece {
  void* data;
  int64_t offset, width;
};

// A unit is the most bytes, up to 16, that divide everything.
struct ConcatArgs {
  void* joined;
  int64_t rows, width;       // of the joined tensor, in units
  const ConcatPiece* table;  // null: `pieces`
  int32_t number;
  ConcatPiece pieces[kConcatInline];
};

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_CONCAT_H_
