// Attributes of the plugin's own ops. The names belong to the OneFlow dispatchers that kernels/dispatch.py borrows; an op
// declares all of those that its dispatcher sets, and reads the ones below.
#ifndef GRAPH_TRAIN_KERNELS_ATTRIBUTES_H_
#define GRAPH_TRAIN_KERNELS_ATTRIBUTES_H_

#include <string>
#include <vector>

#include "common.h"

namespace graph_train {

constexpr const char* kFirstInteger = "crop_h";
constexpr const char* kSecondInteger = "crop_w";
constexpr const char* kFloats = "mean";

// Follows REGISTER_NO_GRAD_USER_OP(...)...: what kernels.dispatch.call sets.
#define GT_CALL_ATTRIBUTES()                        \
  Attr<int64_t>("crop_h", 0)                        \
      .Attr<int64_t>("crop_w", 0)                   \
      .Attr<std::vector<float>>("mean", {})         \
      .Attr<std::vector<float>>("std", {})          \
      .Attr<float>("crop_pos_x", 0)                 \
      .Attr<float>("crop_pos_y", 0)                 \
      .Attr<oneflow::DataType>("output_dtype", oneflow::DataType::kFloat) \
      .Attr<std::string>("output_layout", "")       \
      .Attr<std::string>("color_space", "")

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_ATTRIBUTES_H_
