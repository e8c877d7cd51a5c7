// Activation functions except SiLU, which BatchNorm includes: value and derivative, shared by CPU and CUDA kernels, and
// arguments of the CUDA kernels.
#pragma once

#include "native/exponential.h"

namespace graph_train {

constexpr int kActivateThreads = 256;
// Elements per thread.
constexpr int kActivatePerThread = 8;

// In the order of kernels/ops/activation_function/function.py.
enum class ActivationKind : int32_t { kRelu, kRelu6, kLeakyRelu, kElu, kHardswish, kMish, kGelu, kSigmoid, kTanh };
constexpr int kActivationKinds = 9;

struct ActivateArgs {
  const void* x;
  const void* dy;  // null: forward
  void* out;
  int64_t count;
  int32_t kind;
  float parameter;  // slope of LeakyReLU, alpha of ELU
};

// tanh(log(1 + e^x)) and 1 minus that, both accurate for every x.
struct MishGate {
  float open, shut;
};
GT_HOST_DEVICE MishGate mish_gate(float x) {
  const float n = exp_of_negative(x < 0 ? x : -x);
  const float above = x < 0 ? n * (n + 2.0f) : 1.0f + 2.0f * n;
  const float below = x < 0 ? 2.0f : 2.0f * n * n;
  return {above / (above + below), below / (above + below)};
}

constexpr float kRootHalf = 0.70710678f;
constexpr float kNormalDensity = 0.39894228f;  // 1 / sqrt(2 pi)

// All of them return NaN for NaN.
template<ActivationKind kind>
GT_HOST_DEVICE float activated(float x, float parameter) {
  switch (kind) {
    case ActivationKind::kRelu: return x < 0.0f ? 0.0f : x;
    case ActivationKind::kRelu6: return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x;
    case ActivationKind::kLeakyRelu: return x > 0.0f ? x : x * parameter;
    case ActivationKind::kElu: return x > 0.0f ? x : parameter * expm1f(x);
    case ActivationKind::kHardswish: return x <= -3.0f ? 0.0f : x >= 3.0f ? x : x * (x + 3.0f) / 6.0f;
    case ActivationKind::kMish: return x * mish_gate(x).open;
    case ActivationKind::kGelu: return 0.5f * x * (1.0f + erff(x * kRootHalf));
    case ActivationKind::kSigmoid: return sigmoid_of(x);
    default: return tanhf(x);
  }
}

// The derivative; at a kink, the one from the left, as in PyTorch.
template<ActivationKind kind>
GT_HOST_DEVICE float activation_slope(float x, float parameter) {
  switch (kind) {
    case ActivationKind::kRelu: return x > 0.0f ? 1.0f : 0.0f;
    case ActivationKind::kRelu6: return x > 0.0f && x < 6.0f ? 1.0f : 0.0f;
    case ActivationKind::kLeakyRelu: return x > 0.0f ? 1.0f : parameter;
    case ActivationKind::kElu: return x > 0.0f ? 1.0f : parameter * exp_of_negative(x);
    case ActivationKind::kHardswish: return x < -3.0f ? 0.0f : x <= 3.0f ? x / 3.0f + 0.5f : 1.0f;
    case ActivationKind::kMish: {
      const MishGate gate = mish_gate(x);
      return gate.open + x * sigmoid_of(x) * gate.shut * (1.0f + gate.open);
    }
    case ActivationKind::kGelu:
      return 0.5f * (1.0f + erff(x * kRootHalf)) + x * kNormalDensity * exp_of_negative(-0.5f * x * x);
    case ActivationKind::kSigmoid: {
      const float y = sigmoid_of(x);
      return y * (1.0f - y);
    }
    default: {
      const float y = tanhf(x);
      return 1.0f - y * y;
    }
  }
}

// Calls body.run<kind>(), so that its loops are compiled for each kind. (NVRTC does not support generic lambdas.)
template<typename Body>
GT_HOST_DEVICE void with_kind(int32_t kind, const Body& body) {
  switch (static_cast<ActivationKind>(kind)) {
    case ActivationKind::kRelu: return body.template run<ActivationKind::kRelu>();
    case ActivationKind::kRelu6: return body.template run<ActivationKind::kRelu6>();
    case ActivationKind::kLeakyRelu: return body.template run<ActivationKind::kLeakyRelu>();
    case ActivationKind::kElu: return body.template run<ActivationKind::kElu>();
    case ActivationKind::kHardswish: return body.template run<ActivationKind::kHardswish>();
    case ActivationKind::kMish: return body.template run<ActivationKind::kMish>();
    case ActivationKind::kGelu: return body.template run<ActivationKind::kGelu>();
    case ActivationKind::kSigmoid: return body.template run<ActivationKind::kSigmoid>();
    case ActivationKind::kTanh: return body.template run<ActivationKind::kTanh>();
  }
}

}  // namespace graph_train
