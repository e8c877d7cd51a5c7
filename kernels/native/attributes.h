// Attributes of the plugin's ops, set by kernels/framework/dispatch.py; all ops have the same two.
#pragma once

#include <string>
#include <vector>

#include "native/common.h"

namespace graph_train {

constexpr const char* kIntegers = "integers";
constexpr const char* kFloats = "floats";

template<typename Context>
const std::vector<int64_t>& integers_of(const Context* ctx) {
  return ctx->template Attr<std::vector<int64_t>>(kIntegers);
}

template<typename Context>
const std::vector<float>& floats_of(const Context* ctx) {
  return ctx->template Attr<std::vector<float>>(kFloats);
}

// Memory of an input (data_of) or output (result_of) of any type.
template<typename T = float>
const T* data_of(user_op::KernelComputeContext* ctx, const std::string& name, int index = 0) {
  return static_cast<const T*>(ctx->Tensor4ArgNameAndIndex(name, index)->dptr<void>());
}

template<typename T = float>
T* result_of(user_op::KernelComputeContext* ctx, const std::string& name = "out", int index = 0) {
  return static_cast<T*>(ctx->Tensor4ArgNameAndIndex(name, index)->mut_dptr<void>());
}

inline oneflow::ShapeView view_of(user_op::KernelComputeContext* ctx, const std::string& name, int index = 0) {
  return ctx->Tensor4ArgNameAndIndex(name, index)->shape_view();
}

inline oneflow::DataType type_of(user_op::KernelComputeContext* ctx, const std::string& name, int index = 0) {
  return ctx->Tensor4ArgNameAndIndex(name, index)->data_type();
}

}  // namespace graph_train
