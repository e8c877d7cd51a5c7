// Skips shape inference in compiler passes that do not read shapes, which makes compiling a graph faster.
//
// OneFlow 0.9.0 compiles a job in passes, most of which build an `OpGraph` of their own: 14 for a graph on one rank.
// The largest part of building one is `OpGraph::InferLogicalBlobDesc`, which infers shapes, types and SBP signatures of
// all tensors. Passes that only read names, attributes and edges of the ops do not need it.
//
// The functions that run such passes are redirected to functions which turn the inference off. Each pass that is not
// known here infers shapes as before.
#include <map>
#include <string>

#include "native/common.h"
#include "native/import_slot.h"
#include "oneflow/core/common/maybe.h"
#include "oneflow/core/job/job.pb.h"

namespace oneflow {

class JobPassCtx;
class NNGraph;
class OpGraph;

// Declared here, because OneFlow's wheel contains no headers for them.
class JobPass {
 public:
  virtual ~JobPass() = default;
  virtual Maybe<void> Apply(Job* job, JobPassCtx* context) const = 0;
};

const JobPass& JobPass4Name(const std::string& name);

class JobCompleter {
 public:
  Maybe<void> Complete(Job* job) const;
};

}  // namespace oneflow

namespace graph_train {

namespace {

using oneflow::Job;
using oneflow::JobPass;
using oneflow::JobPassCtx;
using oneflow::Maybe;
using oneflow::NNGraph;
using oneflow::OpGraph;

constexpr char kLibrary[] = "liboneflow-";
#define GT_INFER "_ZNK7oneflow7OpGraph20InferLogicalBlobDescERKNS_3JobE"
#define GT_ADD_VARIABLES "_ZN7oneflow7NNGraph30RegisterNewVariableOpInJobPassEv"
#define GT_DELETE_VARIABLES "_ZN7oneflow7NNGraph41DeleteOutdatedVariableInVariableTensorMgrEv"

// Private member functions of OneFlow's classes.
Maybe<void> infer(const OpGraph* ops, const Job& job) asm(GT_INFER);
Maybe<void> add_variables(NNGraph* graph) asm(GT_ADD_VARIABLES);
Maybe<void> delete_variables(NNGraph* graph) asm(GT_DELETE_VARIABLES);

bool skipping = true;
bool has_one_rank = false;  // and no pass that groups ops of several ranks
int64_t inferences = 0;
// State of the compilation that runs on this thread.
thread_local bool infers = true;         // whether an `OpGraph` that is built now infers shapes
thread_local bool repeats_dump = false;  // whether a second dump of all shapes follows before the first one is read

class Scope {
 public:
  Scope(bool* variable, bool value) : variable_(variable), outer_(*variable) { *variable = value; }
  ~Scope() { *variable_ = outer_; }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  bool* const variable_;
  const bool outer_;
};

Maybe<void> infer_if_read(const OpGraph* ops, const Job& job) {
  if (!infers) return Maybe<void>::Ok();
  ++inferences;
  return infer(ops, job);
}

bool reads_shapes(const std::string& pass) {
  if (pass == "EliminateDeadNodesPass" || pass == "FuseConsecutiveAddPass") return false;
  return pass != "LogicalChainPass" || !has_one_rank;  // which compares SBP signatures of several ranks
}

// A pass of OneFlow that infers shapes if it reads them.
class Pass final : public JobPass {
 public:
  Pass(const std::string& name, const JobPass& pass) : name_(name), pass_(pass) {}

  Maybe<void> Apply(Job* job, JobPassCtx* context) const override {
    if (repeats_dump && name_ == "DumpBlobParallelConfPass") {
      repeats_dump = false;
      return Maybe<void>::Ok();
    }
    const Scope scope(&infers, !skipping || reads_shapes(name_));
    return pass_.Apply(job, context);
  }

 private:
  const std::string name_;
  const JobPass& pass_;
};

const JobPass& pass_by_name(const std::string& name) {
  // Never destroyed: OneFlow keeps references.
  static auto* const passes = new std::map<std::string, Pass>;
  return passes->try_emplace(name, name, oneflow::JobPass4Name(name)).first->second;
}

Maybe<void> add_variables_by_name(NNGraph* graph) {
  const Scope scope(&infers, !skipping);
  return add_variables(graph);
}

Maybe<void> delete_variables_by_name(NNGraph* graph) {
  const Scope scope(&infers, !skipping);
  return delete_variables(graph);
}

// Adds tick and control edges, whose passes read no shapes; two steps for several ranks do.
Maybe<void> complete(const oneflow::JobCompleter* completer, Job* job) {
  const bool skips = skipping && has_one_rank;
  const Scope scope(&infers, !skips);
  const Scope dump_scope(&repeats_dump, skips);
  return completer->Complete(job);
}

bool replace(const char* symbol, void* function) { return replace_import(kLibrary, symbol, function) > 0; }

bool redirect() {
  return replace(GT_INFER, reinterpret_cast<void*>(&infer_if_read))
         && replace("_ZN7oneflow12JobPass4NameERKSs", reinterpret_cast<void*>(&pass_by_name))
         && replace("_ZNK7oneflow12JobCompleter8CompleteEPNS_3JobE", reinterpret_cast<void*>(&complete))
         && replace(GT_ADD_VARIABLES, reinterpret_cast<void*>(&add_variables_by_name))
         && replace(GT_DELETE_VARIABLES, reinterpret_cast<void*>(&delete_variables_by_name));
}

}  // namespace

// Sets whether graphs compiled from now on skip unread shapes (1) or not (0), and whether they run on one rank without
// group boxing, so that more passes read no shapes. Returns 0 if this build of OneFlow cannot be patched.
extern "C" GT_EXPORT int graph_train_skip_unread_shapes(int enabled, int one_rank) {
  static const bool redirected = redirect();
  skipping = enabled != 0;
  has_one_rank = one_rank != 0;
  return redirected;
}

// Number of times that all shapes of a job were inferred in this process. For tests.
extern "C" GT_EXPORT int64_t graph_train_shape_inferences() { return inferences; }

}  // namespace graph_train
