// Arithmetic of one optimizer step: shared by the CPU and the CUDA kernels. Reference: function.py.
//
// Files that include this must be compiled without fused multiply-add: the composed reference rounds each of them.
#pragma once

#include "native/host_device.h"

namespace graph_train {

// In the order of UpdateRule in function.py.
enum class Rule { kSgd = 0, kAdam = 1, kAdamW = 2 };

// HyperIndex of function.py.
enum Hyper {
  kLearningRate = 0,  // three groups
  kWeightDecay = 3,   // three groups
  kBeta1 = 6,
  kOneMinusBeta1,
  kBeta2,
  kOneMinusBeta2,
  kBiasCorrection1,
  kBiasCorrection2Root,
  kEps,
  kEmaDecay,
  kOneMinusEmaDecay,
  kInverseLossScale,
  kUpdate,
  kHyperSize
};

constexpr int64_t kPiece = 16384;  // elements that one partial sum of the norm covers

// A piece of one parameter with its gradient, moments and average.
struct Piece {
  float* parameter;
  float* gradient_sum;
  float* first_moment;
  float* second_moment;  // null for SGD
  float* ema;
  const float* gradient;
  int64_t start;  // in the concatenation of all parameters
  int64_t count;
  int64_t group;  // no padding: tables of pieces are compared as bytes
};

// The scalars of one parameter group in this step.
struct GroupStep {
  float learning_rate, weight_decay, kept, step_size;
  float beta1, one_minus_beta1, beta2, one_minus_beta2, correction2_root, eps, ema_decay, one_minus_ema_decay;
  float inverse_loss_scale, clip;
};

GT_HOST_DEVICE GroupStep group_step(const float* hyper, int64_t group, float clip) {
  const float learning_rate = hyper[kLearningRate + group], weight_decay = hyper[kWeightDecay + group];
  return {learning_rate,
          weight_decay,
          1.0f - learning_rate * weight_decay,
          learning_rate / hyper[kBiasCorrection1],
          hyper[kBeta1],
          hyper[kOneMinusBeta1],
          hyper[kBeta2],
          hyper[kOneMinusBeta2],
          hyper[kBiasCorrection2Root],
          hyper[kEps],
          hyper[kEmaDecay],
          hyper[kOneMinusEmaDecay],
          hyper[kInverseLossScale],
          clip};
}

// Square of one element of the unscaled gradient, for the norm: squares of floats are exact in double.
GT_HOST_DEVICE double unscaled_square(float sum, float gradient, float inverse_loss_scale) {
  const float value = (sum + gradient) * inverse_loss_scale;
  return static_cast<double>(value) * static_cast<double>(value);
}

GT_HOST_DEVICE float clip_factor(float norm, float max_norm) {
  const float factor = max_norm / (norm + 1e-6f);
  return factor < 1.0f ? factor : 1.0f;
}

GT_HOST_DEVICE void sgd_element(const GroupStep& step, float gradient, float* parameter, float* velocity, float* ema) {
  const float clipped = gradient * step.inverse_loss_scale * step.clip;
  const float direction = clipped + step.weight_decay * *parameter;
  const float moved = step.beta1 * *velocity + direction;
  const float updated = *parameter - step.learning_rate * (direction + step.beta1 * moved);
  *velocity = moved;
  *parameter = updated;
  *ema = *ema * step.ema_decay + updated * step.one_minus_ema_decay;
}

GT_HOST_DEVICE void adam_element(const GroupStep& step, bool decoupled_decay, float gradient, float* parameter,
                                 float* mean, float* square, float* ema) {
  const float clipped = gradient * step.inverse_loss_scale * step.clip;
  const float direction = decoupled_decay ? clipped : clipped + step.weight_decay * *parameter;
  const float start = decoupled_decay ? *parameter * step.kept : *parameter;
  const float new_mean = step.beta1 * *mean + step.one_minus_beta1 * direction;
  const float new_square = step.beta2 * *square + step.one_minus_beta2 * (direction * direction);
#ifdef __CUDA_ARCH__
  const float root = sqrtf(new_square);
#else
  const float root = __builtin_sqrtf(new_square);
#endif
  const float denominator = root / step.correction2_root + step.eps;
  const float updated = start - step.step_size * (new_mean / denominator);
  *mean = new_mean;
  *square = new_square;
  *parameter = updated;
  *ema = *ema * step.ema_decay + updated * step.one_minus_ema_decay;
}

}  // namespace graph_train
