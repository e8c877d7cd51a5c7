// Calls an op from Python with any number of inputs and outputs; kernels/framework/dispatch.py is its caller.
//
// OneFlow offers no public dispatcher of a new op. Its interpreter's entry is exported, but the headers that declare it
// include headers that are missing in the wheel, so it is declared here.
#include "native/attributes.h"
#include "oneflow/core/framework/mutable_attr_map.h"
#include "oneflow/core/framework/tensor_tuple.h"

namespace oneflow::one {

class OpExpr;

class OpInterpUtil {
 public:
  template<typename T>
  static Maybe<T> Dispatch(const OpExpr& op, const TensorTuple& inputs, const AttrMap& attributes);
};

}  // namespace oneflow::one

namespace graph_train {

namespace {

using namespace oneflow;  // JUST and the macro of the attributes need the names

Maybe<void> dispatch(const one::OpExpr& op, const one::TensorTuple& inputs, one::TensorTuple* outputs,
                     const std::vector<int64_t>& integers, const std::vector<float>& floats) {
  auto& attributes = THREAD_CACHED_MUTABLE_ATTR_MAP("integers", "floats");
  attributes.SetAllAttrs(integers, floats);
  const auto made = JUST(one::OpInterpUtil::Dispatch<one::TensorTuple>(op, inputs, AttrMap(attributes)));
  for (const auto& tensor : *made) outputs->push_back(tensor);
  return Maybe<void>::Ok();
}

}  // namespace

// `op`, `inputs` and `outputs` are the C++ objects behind Python's UserOpExpr and TensorTuples; results are appended to
// `outputs`. Returns null, or an error message that stays valid until the next call from this thread.
extern "C" GT_EXPORT const char* graph_train_dispatch(const void* op, const void* inputs, void* outputs,
                                                      const int64_t* integers, int64_t integer_count,
                                                      const float* floats, int64_t float_count) {
  thread_local std::string error;
  try {
    const auto result = dispatch(*static_cast<const one::OpExpr*>(op), *static_cast<const one::TensorTuple*>(inputs),
                                 static_cast<one::TensorTuple*>(outputs), {integers, integers + integer_count},
                                 {floats, floats + float_count});
    if (result.IsOk()) return nullptr;
    error = result.GetSerializedError();
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  return error.c_str();
}

}  // namespace graph_train
