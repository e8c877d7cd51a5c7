// All parameters with gradients, moments and averages, cut into pieces; in host or device memory.
#pragma once

#include <vector>

#include "native/attributes.h"
#include "ops/update/update.h"

namespace graph_train {

inline float* state_of(user_op::KernelComputeContext* ctx, const char* name, int32_t index) {
  return ctx->Tensor4ArgNameAndIndex(name, index)->mut_dptr<float>();
}

inline Rule rule_of(user_op::KernelComputeContext* ctx) { return static_cast<Rule>(integers_of(ctx).at(0)); }

// Pieces of at most `most` elements. Averages, sums and moments of all parameters are flat tensors; the gradient may be
// one.
inline std::vector<Piece> cut_into_pieces(user_op::KernelComputeContext* ctx, int64_t most) {
  std::vector<Piece> pieces;
  const auto& floats = floats_of(ctx);  // the clipping norm, then the group of each parameter
  const int32_t parameters = ctx->input_size("parameter");
  const bool flat_gradient = ctx->input_size("gradient") < parameters;
  float* const gradient_sum = state_of(ctx, "gradient_sum", 0);
  float* const ema = state_of(ctx, "ema", 0);
  float* const first_moment = state_of(ctx, "first_moment", 0);
  float* const second_moment = rule_of(ctx) == Rule::kSgd ? nullptr : state_of(ctx, "second_moment", 0);
  int64_t first = 0;  // first element of this parameter in the concatenation of all
  for (int32_t index = 0; index < parameters; ++index) {
    const int64_t elements = view_of(ctx, "parameter", index).elem_cnt();
    float* const parameter = state_of(ctx, "parameter", index);
    const float* const gradient = flat_gradient ? data_of(ctx, "gradient", 0) + first : data_of(ctx, "gradient", index);
    for (int64_t at = 0; at < elements; at += most) {
      const int64_t count = std::min(most, elements - at);
      const int64_t start = first + at;
      pieces.push_back({parameter + at, gradient_sum + start, first_moment + start,
                        second_moment == nullptr ? nullptr : second_moment + start, ema + start, gradient + at, start,
                        count, static_cast<int64_t>(floats.at(1 + index))});
    }
    first += elements;
  }
  return pieces;
}

}  // namespace graph_train
