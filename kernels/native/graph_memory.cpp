// Shares memory between tensors of a compiled CPU graph with disjoint lifetimes, and frees compile-time data.
//
// OneFlow 0.9.0 shares memory on CUDA only (`InitMemoryChains` in intra_job_mem_sharing_util.cpp skips the CPU): on a
// CPU, every tensor of a graph has its own memory until the program ends. The compiler calls its planner across a
// library boundary, where the plugin replaces it by a function that calls OneFlow's planner and then ours. Only rank 0
// compiles; every rank calls another redirected function before it runs a plan, which gives us the plan to free.
//
// Our planner fixes one order of the CPU ops (by control edges, as OneFlow does on CUDA), derives each tensor's
// lifetime from it, and packs all tensors that only such ops read and write into one block per process. Variables,
// inputs, outputs and tensors used by other ops or processes keep their own memory.
#include <algorithm>
#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "native/common.h"
#include "native/import_slot.h"
#include "native/memory_plan.h"
#include "oneflow/core/job/id_manager.h"
#include "oneflow/core/job/intra_job_mem_sharing_util.h"
#include "oneflow/core/job/job_build_and_infer_ctx.h"
#include "oneflow/core/job/job_build_and_infer_ctx_mgr.h"
#include "oneflow/core/job/plan_util.h"
#include "oneflow/core/register/blob_desc.h"

namespace oneflow {
namespace one {

// Declared here, because OneFlow's header needs others that are missing in the wheel.
class TensorNameScope {
 public:
  static TensorNameScope* Global();
  void Clear();
};

}  // namespace one
}  // namespace oneflow

namespace graph_train {

namespace {

using oneflow::Plan;
using oneflow::RegstDescProto;
using oneflow::TaskProto;

constexpr char kLibrary[] = "liboneflow-";
constexpr char kPlanner[] =
    "_ZN7oneflow22IntraJobMemSharingUtil30InferMemBlockId4MemReusedRegstEPNS_4PlanERKSt8functionIFbRKSsS5_EE";
constexpr char kPopulate[] =
    "_ZN7oneflow8PlanUtil19PopulateOpAttributeEPNS_4PlanERKN6google8protobuf3MapIlNS_19OpAttributeRefTableEEE";

bool sharing = true;
// The plan of the graph that was compiled last, which owns it. Only valid between graph_train_free_build_records and
// graph_train_free_plan of one compilation; later the graph may have been freed.
Plan* compiled = nullptr;
struct {
  int64_t separate = 0, shared = 0, peak = 0;
} last_plan;  // bytes without sharing, of the blocks, and in use at the same time; over all processes of the job

struct Tensor {
  RegstDescProto* regst = nullptr;
  int64_t size = 0;
  std::vector<int64_t> readers;  // tasks that read its values
};

struct Task {
  TaskProto* proto = nullptr;
  bool plannable = false;       // an ordinary op on the CPU
  std::vector<int64_t> inputs;  // indices in `Tasks::tensors` of those whose values it reads
  std::vector<int64_t> outputs;
  std::vector<int64_t> successors;
  int64_t waits_for = 0;
};

bool is_on_cpu(const TaskProto& task) {
  return oneflow::PlanUtil::GetStreamId(task).device_id().device_type() == oneflow::DeviceType::kCPU;
}

const oneflow::OperatorConf& op_of(const Plan& plan, const TaskProto& task) {
  const auto& kernel = task.exec_sequence().exec_node(0).kernel_conf();
  return oneflow::PlanUtil::GetOpAttribute(&plan, task.job_id(), kernel).op_conf();
}

bool is_plannable(const Plan& plan, const TaskProto& task) {
  return task.task_type() == oneflow::TaskType::kNormalForward && task.exec_sequence().exec_node_size() == 1
         && is_on_cpu(task) && op_of(plan, task).has_user_conf();
}

// Returns false if an op reads only the shape of an argument, such as the parts into which a gradient is split.
bool reads_values(const std::string& op, const std::string& argument) {
  return op != "split_like" || argument.compare(0, 5, "like_") != 0;
}

// Ids of the tensors whose values a plannable task reads.
std::unordered_set<int64_t> read_by(const Plan& plan, const TaskProto& task) {
  const std::string& op = op_of(plan, task).user_conf().op_type_name();
  std::unordered_set<int64_t> ids;
  for (const auto& bound : task.exec_sequence().exec_node(0).bn_in_op2regst_desc_id()) {
    if (reads_values(op, bound.first)) ids.insert(bound.second);
  }
  return ids;
}

// Returns false for ops that run several times per call of the graph, so that lifetimes do not follow from one order.
bool runs_once(const TaskProto& task) {
  return task.task_type() != oneflow::TaskType::kRepeat && task.task_type() != oneflow::TaskType::kAcc
         && task.task_type() != oneflow::TaskType::kPack && task.task_type() != oneflow::TaskType::kUnpack;
}

// Size of a tensor's body in bytes if it may share memory, else 0.
int64_t shareable_bytes(const RegstDescProto& regst) {
  if (!regst.enable_reuse_mem() || regst.register_num() != 1 || regst.mem_block_id() != -1) return 0;
  if (!regst.regst_desc_type().has_data_regst_desc() || regst.mem_case().has_pinned_device_type()) return 0;
  if (regst.force_inplace_consumed_regst_desc_id() != -1 || regst.hint_inplace_consumed_regst_desc_id() != -1) return 0;
  const auto& data = regst.regst_desc_type().data_regst_desc();
  if (data.lbi2blob_desc_size() != 1) return 0;
  const oneflow::BlobDesc blob(data.lbi2blob_desc(0).blob_desc());
  const bool plain =
      blob.data_type() != oneflow::DataType::kTensorBuffer && blob.data_type() != oneflow::DataType::kOFRecord;
  return plain && !blob.is_dynamic() ? static_cast<int64_t>(blob.AlignedByteSizeOfBlobBody()) : 0;
}

// The tasks of a plan with the tensors that may share memory.
struct Tasks {
  std::vector<Task> tasks;
  std::vector<Tensor> tensors;

  explicit Tasks(Plan* plan) {
    std::unordered_map<int64_t, int64_t> index;
    for (TaskProto& proto : *plan->mutable_task()) {
      index[proto.task_id()] = tasks.size();
      tasks.push_back({&proto, is_plannable(*plan, proto)});
    }
    std::unordered_set<int64_t> computed_in_place;
    for (const Task& task : tasks) {
      read.push_back(task.plannable ? read_by(*plan, *task.proto) : std::unordered_set<int64_t>());
      for (const auto& produced : task.proto->produced_regst_desc()) {
        computed_in_place.insert(produced.second.force_inplace_consumed_regst_desc_id());
        computed_in_place.insert(produced.second.hint_inplace_consumed_regst_desc_id());
      }
    }
    for (size_t i = 0; i < tasks.size(); ++i) {
      // A protobuf map is unordered, but plans must be the same in every run.
      std::vector<std::pair<std::string, RegstDescProto*>> produced;
      for (auto& pair : *tasks[i].proto->mutable_produced_regst_desc()) produced.emplace_back(pair.first, &pair.second);
      std::sort(produced.begin(), produced.end());
      for (const auto& pair : produced)
        add(i, pair.second, index, computed_in_place.count(pair.second->regst_desc_id()) > 0);
    }
  }

  bool same_process(int64_t a, int64_t b) const { return tasks[a].proto->machine_id() == tasks[b].proto->machine_id(); }

 private:
  std::vector<std::unordered_set<int64_t>> read;  // by task

  void add(int64_t producer, RegstDescProto* regst, const std::unordered_map<int64_t, int64_t>& index, bool in_place) {
    Tensor tensor{regst, shareable_bytes(*regst), {}};
    bool shares = tensor.size > 0 && !in_place && tasks[producer].plannable;
    for (const int64_t id : regst->consumer_task_id()) {
      const int64_t consumer = index.at(id);
      tasks[producer].successors.push_back(consumer);
      ++tasks[consumer].waits_for;
      if (read[consumer].count(regst->regst_desc_id()) > 0) tensor.readers.push_back(consumer);
      shares = shares && tasks[consumer].plannable && same_process(producer, consumer);
    }
    if (!shares) return;
    tasks[producer].outputs.push_back(tensors.size());
    for (const int64_t reader : tensor.readers) tasks[reader].inputs.push_back(tensors.size());
    tensors.push_back(tensor);
  }
};

// A topological order of the tasks, empty if there is none. The next task is always the executable one that adds the
// fewest bytes to those in use; ties are resolved by OneFlow's own order.
std::vector<int64_t> execution_order(const Tasks& plan) {
  std::vector<int64_t> waits_for, readers, order, ready;
  for (const Task& task : plan.tasks) waits_for.push_back(task.waits_for);
  for (const Tensor& tensor : plan.tensors) readers.push_back(tensor.readers.size());
  for (size_t i = 0; i < plan.tasks.size(); ++i) {
    if (waits_for[i] == 0) ready.push_back(i);
  }
  const auto cost = [&](int64_t i) {
    int64_t bytes = 0;
    for (const int64_t tensor : plan.tasks[i].outputs) bytes += readers[tensor] > 0 ? plan.tensors[tensor].size : 0;
    for (const int64_t tensor : plan.tasks[i].inputs) bytes -= readers[tensor] == 1 ? plan.tensors[tensor].size : 0;
    return std::make_pair(bytes, plan.tasks[i].proto->task_set_info().order_in_graph());
  };
  while (!ready.empty()) {
    const auto next =
        std::min_element(ready.begin(), ready.end(), [&](int64_t a, int64_t b) { return cost(a) < cost(b); });
    const int64_t task = *next;
    ready.erase(next);
    order.push_back(task);
    for (const int64_t tensor : plan.tasks[task].inputs) --readers[tensor];
    for (const int64_t successor : plan.tasks[task].successors) {
      if (--waits_for[successor] == 0) ready.push_back(successor);
    }
  }
  if (order.size() != plan.tasks.size()) order.clear();
  return order;
}

// Adds a control edge, so that `after` is executed after `before`.
void add_edge(TaskProto* before, TaskProto* after, const std::string& name) {
  RegstDescProto edge;
  edge.set_regst_desc_id(oneflow::Singleton<oneflow::IDMgr>::Get()->NewRegstDescId());
  edge.set_producer_task_id(before->task_id());
  edge.add_consumer_task_id(after->task_id());
  edge.set_min_register_num(1);
  edge.set_max_register_num(1);
  edge.set_register_num(1);
  edge.set_enable_reuse_mem(false);
  edge.set_mem_block_id(-1);
  edge.set_mem_block_offset(-1);
  edge.mutable_mem_case()->set_device_type(oneflow::DeviceType::kCPU);
  edge.mutable_mem_case()->set_device_id(0);
  edge.mutable_regst_desc_type()->mutable_ctrl_regst_desc();
  (*after->mutable_consumed_regst_desc_id())["in_ctrl"].add_regst_desc_id(edge.regst_desc_id());
  (*before->mutable_produced_regst_desc())[name] = edge;
}

bool has_edge(const Task& before, int64_t after) {
  return std::find(before.successors.begin(), before.successors.end(), after) != before.successors.end();
}

// Makes the tasks of `chain` run one after another, and the first one of the next call of the graph after the last one
// of this call.
void enforce_order(const Tasks& plan, const std::vector<int64_t>& chain) {
  for (size_t i = 1; i < chain.size(); ++i) {
    if (has_edge(plan.tasks[chain[i - 1]], chain[i])) continue;
    add_edge(plan.tasks[chain[i - 1]].proto, plan.tasks[chain[i]].proto, "out_ctrl_graph_train_order");
  }
  if (chain.size() > 2)
    add_edge(plan.tasks[chain.front()].proto, plan.tasks[chain.back()].proto, "out_ctrl_graph_train_call");
}

// Places the tensors that tasks of `chain` produce in one block.
void place(const Tasks& plan, const std::vector<int64_t>& chain) {
  std::unordered_map<int64_t, int64_t> position;
  for (size_t i = 0; i < chain.size(); ++i) position[chain[i]] = i;
  std::vector<Lifetime> lifetimes;
  std::vector<RegstDescProto*> regsts;
  for (const int64_t task : chain) {
    for (const int64_t index : plan.tasks[task].outputs) {
      const Tensor& tensor = plan.tensors[index];
      int64_t last = position.at(task);
      for (const int64_t reader : tensor.readers) last = std::max(last, position.at(reader));
      lifetimes.push_back({tensor.size, position.at(task), last});
      regsts.push_back(tensor.regst);
      last_plan.separate += tensor.size;
    }
  }
  std::vector<int64_t> offsets;
  last_plan.shared += pack(lifetimes, &offsets);
  last_plan.peak += peak_in_use(lifetimes);
  const int64_t block = oneflow::Singleton<oneflow::IDMgr>::Get()->NewMemBlockId();
  for (size_t i = 0; i < regsts.size(); ++i) {
    regsts[i]->set_mem_block_id(block);
    regsts[i]->set_mem_block_offset(offsets[i]);
    // OneFlow writes a tensor's shape before its values, once, where another tensor's values would overwrite it. The
    // shape of a tensor with a variable's name is stored elsewhere; the name has no other use.
    regsts[i]->set_variable_op_name("graph_train_shared");
  }
}

void share_memory(Plan* plan) {
  for (const TaskProto& task : plan->task()) {
    if (!is_on_cpu(task) || !runs_once(task)) return;
  }
  const Tasks tasks(plan);
  std::unordered_map<int64_t, std::vector<int64_t>> chains;  // by process
  for (const int64_t task : execution_order(tasks)) {
    if (tasks.tasks[task].plannable) chains[tasks.tasks[task].proto->machine_id()].push_back(task);
  }
  for (const auto& pair : chains) {
    enforce_order(tasks, pair.second);
    place(tasks, pair.second);
  }
}

// Clears data that is not read after placement, because every op is copied five times later.
void clear_unread_data(oneflow::OpAttribute* op) {
  op->clear_blob_last_used_signature();
  op->clear_blob_backward_used_signature();
  op->clear_local_signature();
  op->clear_parallel_signature();
  op->mutable_op_conf()->clear_loc();
}

using Reachable = std::function<bool(const std::string&, const std::string&)>;

void plan_memory(Plan* plan, const Reachable& reachable) {
  oneflow::IntraJobMemSharingUtil::InferMemBlockId4MemReusedRegst(plan, reachable);
  compiled = plan;  // so that rank 0 has its plan even if populate_plan is never called
  for (auto& job : *plan->mutable_job_id2op_attribute_ref_table()) {
    for (auto& op : *job.second.mutable_op_name2op_attribute()) clear_unread_data(&op.second);
  }
  last_plan = {};
  if (sharing) share_memory(plan);
}

using OpsOfJobs = oneflow::PbMap<int64_t, oneflow::OpAttributeRefTable>;

void populate_plan(Plan* plan, const OpsOfJobs& ops) {
  oneflow::PlanUtil::PopulateOpAttribute(plan, ops);
  compiled = plan;
}

// Access to the private members of OneFlow's records of built graphs.
struct Records : oneflow::JobBuildAndInferCtxMgr {
  static constexpr auto kClearContexts = &Records::clear_job_name2infer_ctx;
  static constexpr auto kJobs = &Records::mut_job_set;
};

struct Record : oneflow::JobBuildAndInferCtx {
  static constexpr auto kJob = &Record::mut_job;
};

}  // namespace

// Sets whether graphs compiled from now on share memory between tensors (1) or not (0). Returns 0 if this build of
// OneFlow cannot be patched; then every tensor of a graph keeps its own memory.
extern "C" GT_EXPORT int graph_train_share_graph_memory(int enabled) {
  [[maybe_unused]] static const int populates =
      replace_import(kLibrary, kPopulate, reinterpret_cast<void*>(&populate_plan));
  static const int plans = replace_import(kLibrary, kPlanner, reinterpret_cast<void*>(&plan_memory));
  sharing = enabled != 0;
  return plans > 0;
}

// Called between building and compiling a graph. Frees the build records of all graphs so far, which are not read once
// a graph has its job.
extern "C" GT_EXPORT void graph_train_free_build_records() {
  compiled = nullptr;
  oneflow::JobBuildAndInferCtxMgr* const records = CHECK_JUST(oneflow::GlobalJobBuildAndInferCtxMgr());
  (records->*Records::kClearContexts)();
  // The next graph's id follows from their number, so they are emptied, not removed.
  for (oneflow::Job& job : *(records->*Records::kJobs)()->mutable_job()) oneflow::Job().Swap(&job);
}

// Clears the map from tensors to the ops of the last built graph that produced them, as OneFlow does when a graph is
// compiled. Tensors are identified by address, so after a build without compiling, a later graph that reads a new eager
// tensor at such an address would be connected to an op that it does not have, and the process would abort.
extern "C" GT_EXPORT void graph_train_clear_tensor_names() { oneflow::one::TensorNameScope::Global()->Clear(); }

// Frees the plan of the graph that was just compiled, since actors have their own copies. Returns 0 if this build of
// OneFlow does not give access to it.
extern "C" GT_EXPORT int graph_train_free_plan() {
  const bool known = compiled != nullptr;
  if (known) Plan().Swap(compiled);
  compiled = nullptr;
  return known;
}

// Bytes of the last compiled graph: without sharing, as planned, and the minimum for that order of execution. For tests
// and benchmarks.
extern "C" GT_EXPORT void graph_train_last_memory_plan(int64_t* bytes) {
  bytes[0] = last_plan.separate;
  bytes[1] = last_plan.shared;
  bytes[2] = last_plan.peak;
}

// Called while a training graph is built, after its last gradient. Makes it an inference graph: gradients need a
// training graph, but the passes for OneFlow's optimizers, of which each infers all ops again, only cost time.
extern "C" GT_EXPORT void graph_train_clear_train_conf() {
  oneflow::JobBuildAndInferCtx* const record = CHECK_JUST(oneflow::GetCurInferCtx());
  (record->*Record::kJob)()->mutable_job_conf()->mutable_predict_conf();
}

}  // namespace graph_train
