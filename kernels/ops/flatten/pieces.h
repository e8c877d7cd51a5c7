// The tensors of one input as pieces of a row; in host or device memory.
#pragma once

#include <string>
#include <vector>

#include "native/attributes.h"
#include "ops/flatten/flatten.h"

namespace graph_train {

inline std::vector<FlatPiece> flat_pieces(user_op::KernelComputeContext* ctx, const std::string& input) {
  std::vector<FlatPiece> pieces;
  int64_t start = 0;
  for (int32_t index = 0; index < ctx->input_size(input); ++index) {
    const int64_t elements = view_of(ctx, input, index).elem_cnt();
    for (int64_t at = 0; at < elements; at += kFlattenPiece) {
      pieces.push_back({data_of(ctx, input, index) + at, start + at, std::min(kFlattenPiece, elements - at)});
    }
    start += elements;
  }
  return pieces;
}

// Elements of all tensors of an input.
inline int64_t flat_size(const user_op::InferContext* ctx, const std::string& input) {
  int64_t elements = 0;
  for (int32_t index = 0; index < ctx->input_size(input); ++index) elements += ctx->InputShape(input, index).elem_cnt();
  return elements;
}

}  // namespace graph_train
