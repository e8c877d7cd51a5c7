#include "native/memory_plan.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "native/common.h"

namespace graph_train {

int64_t pack(const std::vector<Lifetime>& tensors, std::vector<int64_t>* offsets) {
  std::vector<int64_t> by_size(tensors.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](int64_t a, int64_t b) { return tensors[a].size > tensors[b].size; });
  offsets->assign(tensors.size(), 0);
  std::vector<int64_t> placed;  // ascending offsets
  int64_t block = 0;
  for (const int64_t i : by_size) {
    int64_t offset = 0;
    for (const int64_t other : placed) {
      const bool at_the_same_time = tensors[other].begin <= tensors[i].end && tensors[i].begin <= tensors[other].end;
      if (!at_the_same_time) continue;
      if (offset + tensors[i].size <= (*offsets)[other]) break;
      offset = std::max(offset, (*offsets)[other] + tensors[other].size);
    }
    (*offsets)[i] = offset;
    block = std::max(block, offset + tensors[i].size);
    const auto place = std::upper_bound(placed.begin(), placed.end(), offset,
                                        [&](int64_t value, int64_t other) { return value < (*offsets)[other]; });
    placed.insert(place, i);
  }
  return block;
}

int64_t peak_in_use(const std::vector<Lifetime>& tensors) {
  std::map<int64_t, int64_t> change;
  for (const Lifetime& tensor : tensors) {
    change[tensor.begin] += tensor.size;
    change[tensor.end + 1] -= tensor.size;
  }
  int64_t in_use = 0, peak = 0;
  for (const auto& [step, bytes] : change) peak = std::max(peak, in_use += bytes);
  return peak;
}

// For tests: `pack` on arrays of length `count`; returns the size of the block.
extern "C" GT_EXPORT int64_t graph_train_pack(int64_t count, const int64_t* sizes, const int64_t* begins,
                                              const int64_t* ends, int64_t* offsets) {
  std::vector<Lifetime> tensors;
  for (int64_t i = 0; i < count; ++i) tensors.push_back({sizes[i], begins[i], ends[i]});
  std::vector<int64_t> placed;
  const int64_t block = pack(tensors, &placed);
  std::copy(placed.begin(), placed.end(), offsets);
  return block;
}

}  // namespace graph_train
