// Makes it safe to register kernels after ops have run.
//
// For each op OneFlow keeps the list of its kernels in a vector, and an op that has run keeps pointers into it, to the
// entries it chose. Another kernel of that op may move the vector: the pointers then lead to freed memory. So before this
// library registers anything, every list moves to memory of its own, and what lies at the old place stays there for good,
// with a condition that never holds: whatever an op chose is forgotten, and it chooses anew, now among our kernels too.
#include "native/common.h"
#include "oneflow/core/framework/user_op_registry_manager.h"

namespace graph_train {

namespace {

using Registry = user_op::UserOpRegistryMgr;
using Entries = std::vector<user_op::OpKernelRegistryResult>;
using Lists = oneflow::HashMap<std::string, Entries>;

// The lists are private. An explicit instantiation may name what it could not use.
struct ListsOf {
  using Member = Lists Registry::*;
  friend Member member(ListsOf);
};
template<typename Tag, typename Tag::Member pointer>
struct Opened {
  friend typename Tag::Member member(Tag) { return pointer; }
};
template struct Opened<ListsOf, &Registry::op_kernel_reg_result_>;

// Runs ahead of the registrations, which are static objects without a priority.
__attribute__((constructor(101))) void forget_choices() {
  const auto never = std::make_shared<oneflow::hob::Literal<user_op::KernelRegContext, bool>>("never", false);
  for (auto& [name, entries] : Registry::Get().*member(ListsOf())) {
    auto* old = new Entries(std::move(entries));  // keeps the place in memory, and is never freed
    entries = *old;
    for (auto& entry : *old) entry.is_matched_hob = never;
  }
}

}  // namespace

}  // namespace graph_train
