// Of the test build: which ops are executed, eagerly or in graphs, OneFlow's own included.
#ifdef GT_EMULATED_CUDA

#include <mutex>
#include <set>
#include <sstream>
#include <string>

#include "native/registry.h"

namespace graph_train {

namespace {

std::mutex& mutex() {
  static std::mutex one;
  return one;
}

std::set<std::string>& executed() {
  static std::set<std::string> names;
  return names;
}

// A kernel that notes its name before it computes.
class TracedKernel final : public user_op::OpKernel {
 public:
  TracedKernel(std::string name, const user_op::OpKernel* kernel) : name_(std::move(name)), kernel_(kernel) {}

  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext* ctx) const override {
    return kernel_->CreateOpKernelState(ctx);
  }
  std::shared_ptr<user_op::OpKernelCache> InitOpKernelCache(user_op::KernelCacheContext* ctx) const override {
    return kernel_->InitOpKernelCache(ctx);
  }
  void InitOpKernelCacheWithFlags(user_op::KernelCacheContext* ctx, int8_t flag,
                                  std::shared_ptr<user_op::OpKernelCache>* cache) const override {
    kernel_->InitOpKernelCacheWithFlags(ctx, flag, cache);
  }
  void Compute(user_op::KernelComputeContext* ctx, user_op::OpKernelState* state,
               const user_op::OpKernelCache* cache) const override {
    {
      const std::lock_guard<std::mutex> lock(mutex());
      executed().insert(name_);
    }
    kernel_->Compute(ctx, state, cache);
  }
  void InferShape(user_op::KernelInferContext* ctx) const override { kernel_->InferShape(ctx); }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return kernel_->AlwaysComputeWhenAllOutputsEmpty(); }
  bool IsKernelLaunchSynchronized() const override { return kernel_->IsKernelLaunchSynchronized(); }

 private:
  std::string name_;
  const user_op::OpKernel* kernel_;  // as long as the process, like this
};

}  // namespace

// Traces every op that has not been executed yet; to be called once, before any is.
extern "C" GT_EXPORT void graph_train_trace_ops() {
  for (auto& [op, entries] : kernels_of_ops()) {
    for (size_t index = 0; index < entries.size(); ++index) {
      const std::string name = index < number_of_oneflows_kernels(op) ? op + " OneFlow" : op + " plugin";
      entries[index].create_fn = [name, create = entries[index].create_fn] { return new TracedKernel(name, create()); };
    }
  }
}

extern "C" GT_EXPORT void graph_train_forget_executed_ops() {
  const std::lock_guard<std::mutex> lock(mutex());
  executed().clear();
}

// Ops and whose kernels computed them, "OneFlow" or "plugin"; a line each.
extern "C" GT_EXPORT const char* graph_train_executed_ops() {
  const std::lock_guard<std::mutex> lock(mutex());
  static std::string kept;
  std::ostringstream names;
  for (const std::string& op : executed()) names << op << '\n';
  return (kept = names.str()).c_str();
}

}  // namespace graph_train

#endif  // GT_EMULATED_CUDA
