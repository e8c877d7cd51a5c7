// The optimizer step of all parameters in one cooperative launch, without synchronising with the host.
//
// The blocks first add the squares of their pieces and wait for each other, because the norm needs all gradients before
// the first weight may change. Then each block adds the sums of all pieces, in the same order, and updates its pieces.
// Results are bitwise equal to the CPU kernel's, except that the norm is added in another order.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/update/launch.h"

namespace graph_train {

namespace {

// Calls body(i) for this thread's elements of a piece.
template<typename Body>
GT_DEVICE void for_thread_elements(const Piece& piece, const Body& body) {
  for (int64_t i = threadIdx.x; i < piece.count; i += kUpdateThreads) body(i);
}

// Calls body(index) for this block's pieces.
template<typename Body>
GT_DEVICE void for_block_pieces(const UpdateArgs& args, const Body& body) {
  for (int64_t index = blockIdx.x; index < args.count; index += gridDim.x) body(index);
}

GT_DEVICE void sum_squares(const UpdateArgs& args) {
  const float inverse_loss_scale = args.hyper[kInverseLossScale];
  for_block_pieces(args, [&](int64_t index) {
    const Piece piece = args.pieces[index];
    double sum = 0;
    for_thread_elements(piece, [&](int64_t i) {
      sum += unscaled_square(piece.gradient_sum[i], piece.gradient[i], inverse_loss_scale);
    });
    sum = block_sum<kUpdateThreads>(sum);
    if (threadIdx.x == 0) args.squares[index] = sum;
  });
}

// The norm of all gradients; every thread gets it.
GT_DEVICE float gradient_norm_of(const UpdateArgs& args) {
  double sum = 0;
  for (int64_t index = threadIdx.x; index < args.count; index += kUpdateThreads) sum += args.squares[index];
  return static_cast<float>(sqrt(block_sum<kUpdateThreads>(sum)));
}

GT_DEVICE void accumulate(const UpdateArgs& args) {
  for_block_pieces(args, [&](int64_t index) {
    const Piece piece = args.pieces[index];
    for_thread_elements(piece, [&](int64_t i) { piece.gradient_sum[i] = piece.gradient_sum[i] + piece.gradient[i]; });
  });
}

// Resets the gradient sums and, if `updates`, updates parameters, moments and averages.
GT_DEVICE void apply(const UpdateArgs& args, float norm, bool updates) {
  const float clip = clip_factor(norm, args.max_norm);
  for_block_pieces(args, [&](int64_t index) {
    const Piece piece = args.pieces[index];
    const GroupStep step = group_step(args.hyper, piece.group, clip);
    for_thread_elements(piece, [&](int64_t i) {
      const float sum = piece.gradient_sum[i], gradient = sum + piece.gradient[i];
      if (sum != 0) piece.gradient_sum[i] = 0;  // without accumulation it is zero already
      if (!updates) return;
      if (args.rule == Rule::kSgd) {
        sgd_element(step, gradient, piece.parameter + i, piece.first_moment + i, piece.ema + i);
      } else {
        adam_element(step, args.rule == Rule::kAdamW, gradient, piece.parameter + i, piece.first_moment + i,
                     piece.second_moment + i, piece.ema + i);
      }
    });
  });
}

}  // namespace

GT_BLOCK_KERNEL(update_parameters, UpdateArgs, kUpdateThreads) {
  const bool first = blockIdx.x == 0 && threadIdx.x == 0;
  if (!(args.hyper[kUpdate] > 0)) {
    if (first) {
      args.out[0] = float_of(0x7fc00000u);  // NaN
      args.out[1] = 0;
    }
    accumulate(args);
    return;
  }
  sum_squares(args);
  grid_barrier(args.grid_counters);
  const float norm = gradient_norm_of(args);
  const bool updates = norm - norm == 0;  // finite
  if (first) {
    args.out[0] = norm;
    args.out[1] = updates ? 1 : 0;
  }
  apply(args, norm, updates);
  leave_grid(args.grid_counters);
}

}  // namespace graph_train
