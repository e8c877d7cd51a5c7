// Arithmetic at the beginning of a step, common to the CPU and CUDA kernels.
#pragma once

#include "ops/flatten/flatten.h"

namespace graph_train {

constexpr int kUpdated = 1;  // UPDATED of function.py

struct BeginStepArgs {
  const FlatPiece* pieces;  // of the current statistics
  float* average;
  const float* rows;      // (2, size)
  const float* previous;  // (2,)
  float* first;           // (first_size,)
  float* second;          // (size - first_size,)
  int64_t first_size, size;
};

// Selects the scalars of a step: the first row after a step that updated the weights, else the second.
GT_HOST_DEVICE const float* selected_row(const BeginStepArgs& args) {
  return args.previous[kUpdated] > 0.5f ? args.rows : args.rows + args.size;
}

GT_HOST_DEVICE void copy_scalar(const BeginStepArgs& args, const float* row, int64_t index) {
  (index < args.first_size ? args.first[index] : args.second[index - args.first_size]) = row[index];
}

// Does nothing if `weight` is 0, because 0 * infinity would make the average NaN permanently.
GT_HOST_DEVICE float updated_average(float average, float current, float weight) {
  return weight > 0 ? average - (average - current) * weight : average;
}

}  // namespace graph_train
