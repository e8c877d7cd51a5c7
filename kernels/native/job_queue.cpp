// Prevents OneFlow 0.9.0 from dequeuing a graph run before it is queued.
//
// `LaunchLazyJobInstructionPolicy::Compute` starts a run before it pushes it onto the stream's queue. If its thread is
// preempted in between and the run finishes first, the callback pops an empty queue, and the process crashes, at once
// or later. This happens with small graphs on a busy machine. The plugin wraps both functions: a pop waits for its
// push.
//
// OneFlow's scheduler thread calls sched_yield without end while a graph runs. On a CPU, it takes processor time from
// the graph and from data loading. The queue tells whether a graph runs, so the plugin lets the thread sleep then.
#include <sched.h>

#include <atomic>
#include <chrono>
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

// The longest delay of an instruction that does not belong to the graph, such as a copy of the next batch.
constexpr std::chrono::microseconds kPause(250);

struct Runs {
  std::mutex mutex;
  std::condition_variable changed;
  std::unordered_map<LazyJobStreamPolicy*, int64_t> queued;
  std::atomic<int64_t> total{0};
};

std::atomic<bool> sleep_enabled{false};

// Never destroyed: threads of OneFlow may still call when the process ends.
Runs& runs() {
  static Runs* const all = new Runs;
  return *all;
}

void enqueue(LazyJobStreamPolicy* stream, const std::shared_ptr<oneflow::NNGraphIf>& graph) {
  stream->EnqueueNNGraph(graph);
  const std::lock_guard<std::mutex> lock(runs().mutex);
  ++runs().queued[stream];
  ++runs().total;
  runs().changed.notify_all();
}

void dequeue(LazyJobStreamPolicy* stream) {
  {
    std::unique_lock<std::mutex> lock(runs().mutex);
    runs().changed.wait(lock, [=] { return runs().queued[stream] > 0; });
    --runs().queued[stream];
    --runs().total;
    runs().changed.notify_all();
  }
  stream->DequeueNNGraph();
}

// Replaces sched_yield, which OneFlow's scheduler and worker threads call when they have nothing to do.
int yield() {
  if (!sleep_enabled || runs().total == 0) return sched_yield();
  std::unique_lock<std::mutex> lock(runs().mutex);
  runs().changed.wait_for(lock, kPause, [] { return runs().total == 0; });
  return 0;
}

}  // namespace

// Call once, while no graph runs. Returns 0 if this build of OneFlow cannot be patched.
extern "C" GT_EXPORT int graph_train_order_job_queue() {
  // Pops wait for pushes, so both are patched or neither.
  return replace_import(kLibrary, kEnqueue, reinterpret_cast<void*>(&enqueue)) > 0
         && replace_import(kLibrary, kDequeue, reinterpret_cast<void*>(&dequeue)) > 0;
}

// Sets whether threads that wait for a graph sleep (1) or yield (0). Returns 0 if this build of OneFlow cannot be
// patched.
extern "C" GT_EXPORT int graph_train_sleep_while_graphs_run(int on) {
  static const bool redirected = replace_import(kLibrary, "sched_yield", reinterpret_cast<void*>(&yield)) > 0;
  sleep_enabled = on != 0;
  return redirected;
}

}  // namespace graph_train
