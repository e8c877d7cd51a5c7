// One op for the whole optimizer step: accumulate, unscale, norm, clip, update, moving average, of all parameters.
// Contract: kernels/ops/update/function.py, with the composed reference.
//
// Two passes over memory: the norm needs all gradients before the first weight may change. Every partial sum belongs to
// a fixed piece of a tensor, so the results do not depend on the number of threads.
#include <array>
#include <cmath>

#include "native/attributes.h"

// Products and sums are rounded separately, as in the composed reference: results are bitwise equal on every CPU.
#include "native/exact_rounding.h"
#include "ops/update/pieces.h"

namespace graph_train {
namespace {

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
  for (int lane = 0; i < piece.count; ++i, ++lane)
    lanes[lane] += unscaled_square(sum[i], gradient[i], inverse_loss_scale);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

GT_VECTOR void accumulate(const Piece& piece) {
  float* __restrict__ sum = piece.gradient_sum;
  const float* __restrict__ gradient = piece.gradient;
  for (int64_t i = 0; i < piece.count; ++i) sum[i] = sum[i] + gradient[i];
}

// Without accumulation the sum is zero already; it is not written again, to save memory bandwidth.
GT_VECTOR void reset(const Piece& piece) {
  int nonzero = 0;
  for (int64_t i = 0; i < piece.count; ++i) nonzero |= piece.gradient_sum[i] != 0.0f;
  if (nonzero) std::fill_n(piece.gradient_sum, piece.count, 0.0f);
}

// The pointers are `restrict` parameters, because GCC ignores the qualifier on members of a struct.
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

// Calls body(index) for every piece; a thread processes those that begin in its range of elements.
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

class UpdateKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const Rule rule = rule_of(ctx);
    const float max_norm = floats_of(ctx).at(0);
    const float* hyper = data_of(ctx, "hyper");
    float* out = result_of(ctx);
    const auto pieces = cut_into_pieces(ctx, kPiece);

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

GT_CPU_KERNEL("graph_train_update_sgd", UpdateKernel, GT_IS_FLOAT("hyper"));
GT_CPU_KERNEL("graph_train_update_adam", UpdateKernel, GT_IS_FLOAT("hyper"));

}  // namespace
}  // namespace graph_train
