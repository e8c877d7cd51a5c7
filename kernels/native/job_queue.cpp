// Prevents OneFlow 0.9.0 from dequeuing a graph run before it is queued.
//
// `LaunchLazyJobInstructionPolicy::Compute` starts a run before it pushes it onto the stream's queue. If its thread is
// preempted in between and the run finishes first, the callback pops an empty queue, and the process crashes, at once
// or later. This happens with small graphs on a busy machine. The plugin wraps both functions: a pop waits for its
// push.
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "native/common.h"
#include "native/import_slot.h"

namespace oneflow {

class NNGraphIf;

namespace vm {

// OneFlow's wheel contains no header for it.
class LazyJobStreamPolicy {
 public:
  void EnqueueNNGraph(const std::shared_ptr<NNGraphIf>& graph);
  void DequeueNNGraph();
};

}  // namespace vm

}  // namespace oneflow

namespace graph_train {

namespace {

using oneflow::vm::LazyJobStreamPolicy;

constexpr char kLibrary[] = "liboneflow-";
constexpr char kEnqueue[] = "_ZN7oneflow2vm19LazyJobStreamPolicy14EnqueueNNGraphERKSt10shared_ptrINS_9NNGraphIfEE";
constexpr char kDequeue[] = "_ZN7oneflow2vm19LazyJobStreamPolicy14DequeueNNGraphEv";

struct Runs {
  std::mutex mutex;
  std::condition_variable changed;
  std::unordered_map<LazyJobStreamPolicy*, int64_t> queued;
};

// Never destroyed: threads of OneFlow may still call when the process ends.
Runs& runs() {
  static Runs* const all = new Runs;
  return *all;
}

void enqueue(LazyJobStreamPolicy* stream, const std::shared_ptr<oneflow::NNGraphIf>& graph) {
  stream->EnqueueNNGraph(graph);
  const std::lock_guard<std::mutex> lock(runs().mutex);
  ++runs().queued[stream];
  runs().changed.notify_all();
}

void dequeue(LazyJobStreamPolicy* stream) {
  {
    std::unique_lock<std::mutex> lock(runs().mutex);
    runs().changed.wait(lock, [=] { return runs().queued[stream] > 0; });
    --runs().queued[stream];
  }
  stream->DequeueNNGraph();
}

}  // namespace

// Call once, while no graph runs. Returns 0 if this build of OneFlow cannot be patched.
extern "C" GT_EXPORT int graph_train_order_job_queue() {
  // Pops wait for pushes, so both are patched or neither.
  return replace_import(kLibrary, kEnqueue, reinterpret_cast<void*>(&enqueue)) > 0
         && replace_import(kLibrary, kDequeue, reinterpret_cast<void*>(&dequeue)) > 0;
}

}  // namespace graph_train
