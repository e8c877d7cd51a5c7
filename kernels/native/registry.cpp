// Makes it safe to register kernels after ops have run.
//
// For each op OneFlow keeps the list of its kernels in a vector, and an op that has run keeps pointers into it, to the
// entries it chose. Another kernel of that op may move the vector: the pointers then lead to freed memory. So before this
// library registers anything, every list moves to memory of its own, and what lies at the old place stays there for good,
// with a condition that never holds: whatever an op chose is forgotten, and it chooses anew, now among our kernels too.
#include "native/registry.h"

#include <unordered_map>

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

}  // namespace

Lists& kernels_of_ops() { return Registry::Get().*member(ListsOf()); }

namespace {

std::unordered_map<std::string, size_t>& oneflows_numbers() {
  static std::unordered_map<std::string, size_t> numbers;
  return numbers;
}

// Runs ahead of the registrations, which are static objects without a priority.
__attribute__((constructor(101))) void forget_choices() {
  const auto never = std::make_shared<oneflow::hob::Literal<user_op::KernelRegContext, bool>>("never", false);
  for (auto& [name, entries] : kernels_of_ops()) {
    auto* old = new Entries(std::move(entries));  // keeps the place in memory, and is never freed
    entries = *old;
    for (auto& entry : *old) entry.is_matched_hob = never;
    oneflows_numbers()[name] = entries.size();
  }
}

}  // namespace

size_t number_of_oneflows_kernels(const std::string& op) {
  const auto found = oneflows_numbers().find(op);
  return found == oneflows_numbers().end() ? 0 : found->second;
}

}  // namespace graph_train
