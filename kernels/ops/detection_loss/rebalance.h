// New objectness weights of the levels, shared by CPU and CUDA kernels. Reference: models/loss.py.
#pragma once

#include "native/host_device.h"

namespace graph_train {

struct RebalanceArgs {
  float* balance;      // (levels,), changed
  const float* parts;  // (3 + levels,): the levels' mean objectness losses stand last
  float* out;          // (levels,): a copy of the new balance
  int32_t levels, reference;
};

// Moves the weights towards equal contributions of the levels; that of the reference level stays 1.
GT_HOST_DEVICE void rebalance(const RebalanceArgs& args) {
  for (int level = 0; level < args.levels; ++level) {
    // Rounded in the order in which OneFlow divides a number by a tensor.
    args.out[level] = args.balance[level] * 0.9999f + 1.0f / args.parts[3 + level] * 0.0001f;
  }
  const float reference = args.out[args.reference];
  for (int level = 0; level < args.levels; ++level) {
    args.balance[level] = args.balance[level] - (args.balance[level] - args.out[level] / reference);
    args.out[level] = args.balance[level];
  }
}

}  // namespace graph_train
