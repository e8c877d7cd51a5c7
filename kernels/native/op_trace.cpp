// Tracing of executed ops, eager or in graphs: the owner of each kernel and its time.
//
// Inactive until graph_train_trace_ops wraps each kernel.
#include <chrono>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "native/registry.h"

namespace graph_train {

namespace {

// The calls of one op. Times are nanoseconds of the steady clock.
struct OpRecord {
  int64_t calls = 0;
  int64_t spent = 0;
  int64_t first_start = 0;
  int64_t last_end = 0;
};

std::mutex& mutex() {
  static std::mutex one;
  return one;
}

// Keys: op type, owner of the kernel and op name, separated by tabs.
std::map<std::string, OpRecord>& records() {
  static std::map<std::string, OpRecord> by_op;
  return by_op;
}

int64_t now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

void record_call(const std::string& op, int64_t start, int64_t end) {
  const std::lock_guard<std::mutex> lock(mutex());
  OpRecord& record = records()[op];
  if (record.calls == 0) record.first_start = start;
  record.calls += 1;
  record.spent += end - start;
  record.last_end = end;
}

// A kernel that records its calls.
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
    const int64_t start = now();
    kernel_->Compute(ctx, state, cache);
    const int64_t end = now();
    record_call(name_ + '\t' + ctx->op_name(), start, end);
  }
  void InferShape(user_op::KernelInferContext* ctx) const override { kernel_->InferShape(ctx); }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return kernel_->AlwaysComputeWhenAllOutputsEmpty(); }
  bool IsKernelLaunchSynchronized() const override { return kernel_->IsKernelLaunchSynchronized(); }

 private:
  std::string name_;
  const user_op::OpKernel* kernel_;  // lives as long as the process, like this object
};

}  // namespace

// Traces every op that has not been executed yet; call it once, before the first op.
extern "C" GT_EXPORT void graph_train_trace_ops() {
  for (auto& [op, entries] : kernels_of_ops()) {
    for (size_t index = 0; index < entries.size(); ++index) {
      const std::string name = op + (index < count_oneflow_kernels(op) ? "\tOneFlow" : "\tplugin");
      entries[index].create_fn = [name, create = entries[index].create_fn] { return new TracedKernel(name, create()); };
    }
  }
}

extern "C" GT_EXPORT void graph_train_reset_executed_ops() {
  const std::lock_guard<std::mutex> lock(mutex());
  records().clear();
}

// A line for each op, separated by tabs: type, owner of the kernel ("OneFlow" or "plugin"), name, number of calls,
// nanoseconds of all calls, start of the first, end of the last.
extern "C" GT_EXPORT const char* graph_train_executed_ops() {
  const std::lock_guard<std::mutex> lock(mutex());
  static std::string kept;
  std::ostringstream lines;
  for (const auto& [op, record] : records()) {
    lines << op << '\t' << record.calls << '\t' << record.spent << '\t' << record.first_start << '\t' << record.last_end
          << '\n';
  }
  return (kept = lines.str()).c_str();
}

}  // namespace graph_train
