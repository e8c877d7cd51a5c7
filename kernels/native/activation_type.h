// Activation types, numbered as in kernels/framework/activation_type.py; ops receive the number as an attribute.
#pragma once

#include "native/common.h"

namespace graph_train {

inline oneflow::DataType activation_type(int64_t number) {
  switch (number) {
    case 0: return oneflow::DataType::kFloat;
    case 1: return oneflow::DataType::kBFloat16;
    case 2: return oneflow::DataType::kFloat16;
    default: return oneflow::DataType::kInvalidDataType;
  }
}

}  // namespace graph_train
