// Placement of tensors with known sizes and lifetimes in one block of memory.
#ifndef GRAPH_TRAIN_KERNELS_MEMORY_PLAN_H_
#define GRAPH_TRAIN_KERNELS_MEMORY_PLAN_H_

#include <cstdint>
#include <vector>

namespace graph_train {

// A tensor of `size` bytes that is in use from step `begin` to step `end`, both included.
struct Lifetime {
  int64_t size;
  int64_t begin;
  int64_t end;
};

// Sets offsets[i], in bytes, of each tensor such that two that are in use at the same step never overlap; returns the size
// of the block. The largest tensor is placed first, each at the lowest place that is free throughout its lifetime
// (greedy by size, Pisarchyk and Lee 2020, https://arxiv.org/abs/2001.03288).
int64_t pack(const std::vector<Lifetime>& tensors, std::vector<int64_t>* offsets);

// The maximum number of bytes in use at any step, a lower bound of every placement.
int64_t peak_in_use(const std::vector<Lifetime>& tensors);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_MEMORY_PLAN_H_
