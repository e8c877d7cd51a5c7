// OneFlow's lists of the kernels of each op.
#pragma once

#include <string>
#include <vector>

#include "native/common.h"
#include "oneflow/core/framework/user_op_registry_manager.h"

namespace graph_train {

// Kernels of each op: OneFlow's own first, then the plugin's.
oneflow::HashMap<std::string, std::vector<user_op::OpKernelRegistryResult>>& kernels_of_ops();

// Number of OneFlow's own kernels of an op.
size_t count_oneflow_kernels(const std::string& op);

}  // namespace graph_train
