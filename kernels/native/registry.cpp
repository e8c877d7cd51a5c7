// Makes it safe to register kernels after ops have run.
//
// OneFlow stores the kernels of each op in a vector, and an op that has run keeps pointers to the entries it has
// selected. Registering another kernel may reallocate the vector, which would leave these pointers dangling. Before
// this library registers anything, every vector is therefore moved to new memory. The old entries are never freed and
// get a condition that never holds, so that ops select again among all kernels.
#include "native/registry.h"

#include <unordered_map>

namespace graph_train {

namespace {

using Registry = user_op::UserOpRegistryMgr;
using Entries = std::vector<user_op::OpKernelRegistryResult>;
using Lists = oneflow::HashMap<std::string, Entries>;

// The lists are private, but an explicit instantiation may name private members.
struct ListsOf {
  using Member = Lists Registry::*;
  friend Member member(ListsOf);
};
template<typename Tag, typename Tag::Member pointer>
struct Opened {
  friend typename Tag::Member member(Tag) { return pointer; }
};
template struct Opened<ListsOf, &Registry::op_kernel_reg_result_>;

}  // namespace

Lists& kernels_of_ops() { return Registry::Get().*member(ListsOf()); }

namespace {

std::unordered_map<std::string, size_t>& oneflow_kernel_counts() {
  static std::unordered_map<std::string, size_t> numbers;
  return numbers;
}

// Runs before the registrations, which are static objects without a priority.
__attribute__((constructor(101))) void invalidate_selections() {
  const auto never = std::make_shared<oneflow::hob::Literal<user_op::KernelRegContext, bool>>("never", false);
  for (auto& [name, entries] : kernels_of_ops()) {
    auto* old = new Entries(std::move(entries));  // keeps the memory, and is never freed
    entries = *old;
    for (auto& entry : *old) entry.is_matched_hob = never;
    oneflow_kernel_counts()[name] = entries.size();
  }
}

}  // namespace

size_t count_oneflow_kernels(const std::string& op) {
  const auto found = oneflow_kernel_counts().find(op);
  return found == oneflow_kernel_counts().end() ? 0 : found->second;
}

}  // namespace graph_train
