// Exponential, logarithm and sigmoid as polynomials, the same on the CPU and on CUDA. All can be vectorised.
#pragma once

#include "native/number_types.h"

namespace graph_train {

// e^x for x <= 0; relative error below 1e-7. NaN stays NaN.
GT_HOST_DEVICE float exp_of_negative(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to a whole number
  const float whole = shifted - 12582912.0f;
  const float rest = (bounded - whole * 0.693359375f) - whole * -2.12194440e-4f;  // ln 2 in two parts
  float sum = 1.0f / 5040;
  sum = sum * rest + 1.0f / 720;
  sum = sum * rest + 1.0f / 120;
  sum = sum * rest + 1.0f / 24;
  sum = sum * rest + 1.0f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  return sum * float_of(static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23);
}

// 2 artanh(s) for |s| <= 1/3.
GT_HOST_DEVICE float twice_artanh(float s) {
  const float z = s * s;
  float sum = 1.0f / 13;
  sum = sum * z + 1.0f / 11;
  sum = sum * z + 1.0f / 9;
  sum = sum * z + 1.0f / 7;
  sum = sum * z + 1.0f / 5;
  sum = sum * z + 1.0f / 3;
  return 2.0f * s + 2.0f * s * (sum * z);
}

// log(1 + u) for u in [0, 1].
GT_HOST_DEVICE float log_of_one_plus(float u) { return twice_artanh(u / (2.0f + u)); }

// log(x) for normal x > 0.
GT_HOST_DEVICE float log_of_positive(float x) {
  const uint32_t bits = bits_of(x);
  // The mantissa lies in [sqrt(1/2), sqrt(2)).
  const uint32_t above = bits - 0x3f3504f3u;
  const auto exponent = static_cast<float>(static_cast<int32_t>(above) >> 23);
  const float mantissa = float_of((above & 0x7fffffu) + 0x3f3504f3u);
  return exponent * 0.69314718f + twice_artanh((mantissa - 1.0f) / (mantissa + 1.0f));
}

GT_HOST_DEVICE float sigmoid_of(float x) {
  const float power = exp_of_negative(x < 0 ? x : -x);
  return (x < 0 ? power : 1.0f) / (1.0f + power);
}

}  // namespace graph_train
