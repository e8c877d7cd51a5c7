// One op for the whole optimizer step: accumulate, unscale, norm, clip, update, moving average, of all parameters.
// Reference and contract: kernels/update.py.
//
// Two passes over memory: the norm needs all gradients before the first weight may change. Every partial sum belongs to
// a fixed piece of a tensor, so the results do not depend on the number of threads.
#include <array>
#include <cmath>

#include "native/attributes.h"

// As the composed reference does: results are the same bits on every CPU.
#include "native/exact_rounding.h"

#include "ops/update/update.h"

namespace graph_train {
namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

constexpr int64_t kElementsPerThread = 65536;
constexpr int kLanes = 16;  // independent sums, so that additions can be vectorised

// Sum of the squares of the unscaled gradient.
GT_VECTOR double squared_norm(const Piece& piece, float inverse_loss_scale) {
  const float* __restrict__ sum = piece.gradient_sum;
  const float* __restrict__ gradient = piece.gradient;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= piece.count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += unscaled_square(sum[i + lane], gradient[i + lane], inverse_loss_scale);
    }
  }
  for (int lane = 0; i < piece.count; ++i, ++lane) lanes[lane] += unscaled_square(sum[i], gradient[i], inverse_loss_scale);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

GT_VECTOR void accumulate(const Piece& piece) {
  float* __restrict__ sum = piece.gradient_sum;
  const float* __restrict__ gradient = piece.gradient;
  for (int64_t i = 0; i < piece.count; ++i) sum[i] = sum[i] + gradient[i];
}

// Without accumulation the sum is zero already; not writing it again spares memory traffic.
GT_VECTOR void reset(const Piece& piece) {
  int nonzero = 0;
  for (int64_t i = 0; i < piece.count; ++i) nonzero |= piece.gradient_sum[i] != 0.0f;
  if (nonzero) std::fill_n(piece.gradient_sum, piece.count, 0.0f);
}

// Pointers are `restrict` parameters, not members of the piece: only then the compiler trusts that they do not overlap.
GT_VECTOR void sgd(float* __restrict__ parameter, float* __restrict__ velocity, float* __restrict__ ema,
                   const float* __restrict__ sum, const float* __restrict__ gradient, int64_t count, GroupStep step) {
  for (int64_t i = 0; i < count; ++i) {
    sgd_element(step, sum[i] + gradient[i], parameter + i, velocity + i, ema + i);
  }
}

GT_VECTOR void adam(float* __restrict__ parameter, float* __restrict__ mean, float* __restrict__ square,
                    float* __restrict__ ema, const float* __restrict__ sum, const float* __restrict__ gradient,
                    int64_t count, GroupStep step, bool decoupled_decay) {
  for (int64_t i = 0; i < count; ++i) {
    adam_element(step, decoupled_decay, sum[i] + gradient[i], parameter + i, mean + i, square + i, ema + i);
  }
}

void update(Rule rule, const Piece& piece, const GroupStep& step) {
  if (rule == Rule::kSgd) {
    sgd(piece.parameter, piece.first_moment, piece.ema, piece.gradient_sum, piece.gradient, piece.count, step);
  } else {
    adam(piece.parameter, piece.first_moment, piece.second_moment, piece.ema, piece.gradient_sum, piece.gradient,
         piece.count, step, rule == Rule::kAdamW);
  }
  reset(piece);
}

// Calls body(index) for every piece; a thread gets those that begin in its share of all elements.
template<typename Body>
void for_each_piece(const std::vector<Piece>& pieces, const Body& body) {
  const int64_t elements = pieces.empty() ? 0 : pieces.back().start + pieces.back().count;
  parallel_for(elements, kElementsPerThread, [&](int64_t begin, int64_t end) {
    const auto starts_before = [](const Piece& piece, int64_t start) { return piece.start < start; };
    auto piece = std::lower_bound(pieces.begin(), pieces.end(), begin, starts_before);
    for (; piece != pieces.end() && piece->start < end; ++piece) body(piece - pieces.begin());
  });
}

double total_squared_norm(const std::vector<Piece>& pieces, float inverse_loss_scale) {
  std::vector<double> partial(pieces.size());
  for_each_piece(pieces, [&](int64_t index) { partial[index] = squared_norm(pieces[index], inverse_loss_scale); });
  double total = 0;
  for (double value : partial) total += value;
  return total;
}

float* data_of(user_op::KernelComputeContext* ctx, const char* name, int32_t index) {
  return ctx->Tensor4ArgNameAndIndex(name, index)->mut_dptr<float>();
}

// Sums and moments of all parameters are flat tensors, the gradient may be.
std::vector<Piece> cut_into_pieces(user_op::KernelComputeContext* ctx, Rule rule, const std::vector<float>& groups) {
  std::vector<Piece> pieces;
  const int32_t parameters = ctx->input_size("parameter");
  const bool flat_gradient = ctx->input_size("gradient") < parameters;
  float* const gradient_sum = data_of(ctx, "gradient_sum", 0);
  float* const first_moment = data_of(ctx, "first_moment", 0);
  float* const second_moment = rule == Rule::kSgd ? nullptr : data_of(ctx, "second_moment", 0);
  int64_t first = 0;  // element of this parameter, in the row of all
  for (int32_t index = 0; index < parameters; ++index) {
    const int64_t elements = ctx->Tensor4ArgNameAndIndex("parameter", index)->shape_view().elem_cnt();
    float* const parameter = data_of(ctx, "parameter", index);
    float* const ema = data_of(ctx, "ema", index);
    const float* const gradient = flat_gradient ? ctx->Tensor4ArgNameAndIndex("gradient", 0)->dptr<float>() + first
                                                : ctx->Tensor4ArgNameAndIndex("gradient", index)->dptr<float>();
    for (int64_t at = 0; at < elements; at += kPiece) {
      const int64_t count = std::min(kPiece, elements - at);
      const int64_t start = first + at;
      pieces.push_back({parameter + at, gradient_sum + start, first_moment + start,
                        second_moment == nullptr ? nullptr : second_moment + start, ema + at, gradient + at, start, count,
                        static_cast<int>(groups[index])});
    }
    first += elements;
  }
  return pieces;
}

class UpdateKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto rule = static_cast<Rule>(integers_of(ctx).at(0));
    const auto& floats = floats_of(ctx);  // the clipping norm, then the group of each parameter
    const float max_norm = floats.at(0);
    const float* hyper = ctx->Tensor4ArgNameAndIndex("hyper", 0)->dptr<float>();
    float* out = ctx->Tensor4ArgNameAndIndex("out", 0)->mut_dptr<float>();
    const auto pieces = cut_into_pieces(ctx, rule, {floats.begin() + 1, floats.end()});

    if (!(hyper[kUpdate] > 0)) {
      for_each_piece(pieces, [&](int64_t index) { accumulate(pieces[index]); });
      out[0] = NAN;
      out[1] = 0;
      return;
    }
    const auto norm = static_cast<float>(std::sqrt(total_squared_norm(pieces, hyper[kInverseLossScale])));
    out[0] = norm;
    out[1] = std::isfinite(norm) ? 1 : 0;
    if (!std::isfinite(norm)) {
      for_each_piece(pieces, [&](int64_t index) { reset(pieces[index]); });
      return;
    }
    const float clip = clip_factor(norm, max_norm);
    const std::array<GroupStep, 3> steps{group_step(hyper, 0, clip), group_step(hyper, 1, clip),
                                         group_step(hyper, 2, clip)};
    for_each_piece(pieces, [&](int64_t index) { update(rule, pieces[index], steps[pieces[index].group]); });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return true; }
};

const std::array<const char*, 4> kMutableOfSgd = {"parameter", "gradient_sum", "first_moment", "ema"};

// One gradient of all elements, or one in the shape of each parameter.
Maybe<void> check_gradients(const user_op::InferContext* ctx, int64_t elements) {
  const int32_t gradients = ctx->input_size("gradient"), parameters = ctx->input_size("parameter");
  if (gradients == 1 && ctx->InputShape("gradient", 0) == Shape({elements})) return Maybe<void>::Ok();
  CHECK_EQ_OR_RETURN(gradients, parameters);
  for (int32_t index = 0; index < parameters; ++index) {
    CHECK_EQ_OR_RETURN(ctx->InputShape("gradient", index), ctx->InputShape("parameter", index));
  }
  return Maybe<void>::Ok();
}

// The clipping norm and a group for each parameter.
Maybe<void> check_floats(const user_op::InferContext* ctx) {
  const auto& floats = floats_of(ctx);
  CHECK_EQ_OR_RETURN(static_cast<int64_t>(floats.size()), 1 + ctx->input_size("parameter"));
  for (size_t index = 1; index < floats.size(); ++index) {
    CHECK_OR_RETURN(floats[index] == 0 || floats[index] == 1 || floats[index] == 2);
  }
  return Maybe<void>::Ok();
}

template<bool kAdam>
Maybe<void> infer_shape(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputShape("hyper", 0), Shape({kHyperSize}));
  CHECK_EQ_OR_RETURN(ctx->input_size("ema"), ctx->input_size("parameter"));
  int64_t elements = 0;
  for (int32_t index = 0; index < ctx->input_size("parameter"); ++index) {
    CHECK_EQ_OR_RETURN(ctx->InputShape("ema", index), ctx->InputShape("parameter", index));
    elements += ctx->InputShape("parameter", index).elem_cnt();
  }
  JUST(check_gradients(ctx, elements));
  JUST(check_floats(ctx));
  for (const char* name : {"gradient_sum", "first_moment"}) {
    CHECK_EQ_OR_RETURN(ctx->InputShape(name, 0), Shape({elements}));
  }
  const auto rule = static_cast<Rule>(integers_of(ctx).at(0));
  if (kAdam) {
    CHECK_OR_RETURN(rule == Rule::kAdam || rule == Rule::kAdamW);
    CHECK_EQ_OR_RETURN(ctx->InputShape("second_moment", 0), Shape({elements}));
  } else {
    CHECK_OR_RETURN(rule == Rule::kSgd);
  }
  ctx->SetOutputShape("out", 0, Shape({2}));
  return Maybe<void>::Ok();
}

Maybe<void> infer_dtype(user_op::InferContext* ctx) {
  for (const auto& [name, index] : ctx->inputs()) CHECK_EQ_OR_RETURN(ctx->InputDType(name, index), DataType::kFloat);
  ctx->SetOutputDType("out", 0, DataType::kFloat);
  return Maybe<void>::Ok();
}

Maybe<void> mark_mutable(const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf,
                         const char* name) {
  for (int32_t index = 0; index < conf.input_size(name); ++index) {
    user_op::InputArgModifier* argument = modifier(name, index);
    CHECK_OR_RETURN(argument != nullptr);
    argument->set_is_mutable(true);
  }
  return Maybe<void>::Ok();
}

Maybe<void> mark_sgd_state(const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf) {
  for (const char* name : kMutableOfSgd) JUST(mark_mutable(modifier, conf, name));
  return Maybe<void>::Ok();
}

Maybe<void> mark_adam_state(const user_op::GetInputArgModifier& modifier, const user_op::UserOpConfWrapper& conf) {
  JUST(mark_sgd_state(modifier, conf));
  return mark_mutable(modifier, conf, "second_moment");
}

// The state is whole on every device; partial gradients are summed before they come here.
REGISTER_NO_GRAD_USER_OP("graph_train_update_sgd")
    .Input("parameter")
    .Input("gradient_sum")
    .Input("first_moment")
    .Input("ema")
    .Input("gradient")
    .Input("hyper")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape<false>)
    .SetPhysicalTensorDescInferFn(infer_shape<false>)
    .SetGetSbpFn(user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast)
    .SetInputArgModifyFn(mark_sgd_state)
    .SetDataTypeInferFn(infer_dtype);

REGISTER_NO_GRAD_USER_OP("graph_train_update_adam")
    .Input("parameter")
    .Input("gradient_sum")
    .Input("first_moment")
    .Input("ema")
    .Input("second_moment")
    .Input("gradient")
    .Input("hyper")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape<true>)
    .SetPhysicalTensorDescInferFn(infer_shape<true>)
    .SetGetSbpFn(user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast)
    .SetInputArgModifyFn(mark_adam_state)
    .SetDataTypeInferFn(infer_dtype);

GT_CPU_KERNEL("graph_train_update_sgd", UpdateKernel, GT_IS_FLOAT("hyper"));
GT_CPU_KERNEL("graph_train_update_adam", UpdateKernel, GT_IS_FLOAT("hyper"));

}  // namespace
}  // namespace graph_train
