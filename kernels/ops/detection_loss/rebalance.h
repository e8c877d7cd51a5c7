// New weights of the levels' objectness: shared by the CPU's and the CUDA kernels. Reference: models/loss.py.
#ifndef GRAPH_TRAIN_KERNELS_REBALANCE_H_
#define GRAPH_TRAIN_KERNELS_REBALANCE_H_

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
    // In this order of roundings OneFlow divides a number by a tensor.
    args.out[level] = args.balance[level] * 0.9999f + 1.0f / args.parts[3 + level] * 0.0001f;
  }
  const float reference = args.out[args.reference];
  for (int level = 0; level < args.levels; ++level) {
    args.balance[level] = args.balance[level] - (args.balance[level] - args.out[level] / reference);
    args.out[level] = args.balance[level];
  }
}

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_REBALANCE_H_
