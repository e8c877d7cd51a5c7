// Placement of tensors with known sizes and lifetimes in one block of memory.
#pragma once

#include <cstdint>
#include <vector>

namespace graph_train {

// A tensor of `size` bytes, live from step `begin` to step `end` inclusive.
struct Lifetime {
  int64_t size;
  int64_t begin;
  int64_t end;
};

// Sets offsets[i] of each tensor in bytes, so that two that are live at the same step never overlap; returns the size
// of the block. Tensors are placed from the largest to the smallest, each at the lowest offset that is free in its
// lifetime (greedy by size, Pisarchyk and Lee 2020, https://arxiv.org/abs/2001.03288).
int64_t pack(const std::vector<Lifetime>& tensors, std::vector<int64_t>* offsets);

// The maximum number of bytes in use at any step, a lower bound of every placement.
int64_t peak_in_use(const std::vector<Lifetime>& tensors);

}  // namespace graph_train
